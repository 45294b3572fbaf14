"""Ways to break a spec file: each takes a valid one's bytes and gives those of a bad one."""

import json
from collections.abc import Callable
from typing import Any

Header = dict[str, Any]


def split(contents: bytes) -> tuple[Header, bytes]:
    """Header and tensor bytes of a spec file."""
    length = int.from_bytes(contents[:8], "little")
    return json.loads(contents[8 : 8 + length]), contents[8 + length :]


def assembled(header: str | bytes, data: bytes) -> bytes:
    """The file with this header and these tensor bytes."""
    encoded = header if isinstance(header, bytes) else header.encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def with_header(change: Callable[[Header], object]) -> Callable[[bytes], bytes]:
    def attack(contents: bytes) -> bytes:
        header, data = split(contents)
        change(header)
        return assembled(json.dumps(header), data)

    return attack


def with_document(change: Callable[[Header], object]) -> Callable[[bytes], bytes]:
    def changed(header: Header) -> None:
        document = json.loads(header["__metadata__"]["neuron_guard"])
        change(document)
        header["__metadata__"]["neuron_guard"] = json.dumps(document)

    return with_header(changed)


def with_text(old: str, new: str, *, document: bool = False) -> Callable[[bytes], bytes]:
    """Replaces `old` in the text of the header, or of the document."""

    def attack(contents: bytes) -> bytes:
        header, data = split(contents)
        if document:
            text = header["__metadata__"]["neuron_guard"]
            assert old in text
            header["__metadata__"]["neuron_guard"] = text.replace(old, new, 1)
            return assembled(json.dumps(header), data)
        text = json.dumps(header)
        assert old in text
        return assembled(text.replace(old, new, 1), data)

    return attack


def with_value(name: str, place: int, raw: bytes) -> Callable[[bytes], bytes]:
    """Overwrites the four bytes of one value of a tensor."""

    def attack(contents: bytes) -> bytes:
        header, data = split(contents)
        start = header[name]["data_offsets"][0] + 4 * place
        return assembled(json.dumps(header), data[:start] + raw + data[start + 4 :])

    return attack


def without_tensor(name: str, *, listed: bool) -> Callable[[bytes], bytes]:
    """Takes a tensor out of the file, and out of the document's list unless it stays `listed`."""

    def attack(contents: bytes) -> bytes:
        header, data = split(contents)
        start, end = header.pop(name)["data_offsets"]
        for entry in header.values():
            if "data_offsets" in entry and entry["data_offsets"][0] >= end:
                entry["data_offsets"] = [offset - (end - start) for offset in entry["data_offsets"]]
        if not listed:
            document = json.loads(header["__metadata__"]["neuron_guard"])
            del document["tensors"][name]
            header["__metadata__"]["neuron_guard"] = json.dumps(document)
        return assembled(json.dumps(header), data[:start] + data[end:])

    return attack


def extra_tensor(contents: bytes) -> bytes:
    header, data = split(contents)
    header["layers.0.bias"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
    return assembled(json.dumps(header), data + bytes(4))


def not_utf8(contents: bytes) -> bytes:
    header, data = split(contents)
    return assembled(json.dumps(header).replace("torch", "tor\udcffh").encode(errors="surrogateescape"), data)


def deep_header(contents: bytes) -> bytes:
    return assembled("[" * 100_000 + "]" * 100_000, split(contents)[1])


def deep_document(header: Header) -> None:
    header["__metadata__"]["neuron_guard"] = "[" * 100_000 + "]" * 100_000


def without_edits(contents: bytes) -> bytes:
    for name in [name for name in split(contents)[0] if name.startswith("layers.")]:
        contents = without_tensor(name, listed=False)(contents)
    return set_at("layers", value=[])(contents)


def set_entry(name: str, **fields: Any) -> Callable[[bytes], bytes]:
    return with_header(lambda header: header[name].update(fields))


def set_at(*path: str | int, value: Any) -> Callable[[bytes], bytes]:
    """Puts `value` at a place in the document."""

    def change(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = value

    return with_document(change)

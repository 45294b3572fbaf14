"""Spec files that somebody broke, each in one way, and the sentence that refuses it."""

from collections.abc import Callable

from tests.guard.breaking import (
    assembled,
    deep_document,
    deep_header,
    extra_tensor,
    not_utf8,
    set_at,
    set_entry,
    split,
    with_document,
    with_header,
    with_text,
    with_value,
    without_edits,
    without_tensor,
)

NEURONS = "layers.2.neurons"
NAN, MINUS_ONE = b"\x00\x00\xc0\x7f", b"\xff\xff\xff\xff"

ATTACKS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "it ends after 0 bytes, inside the header's length"),
    "shorter than a length": (lambda contents: contents[:7], "it ends after 7 bytes, inside the header's length"),
    "cut in the header": (lambda contents: contents[:50], "it is cut off after 42 of the 3504 bytes of its header"),
    "cut in the tensors": (lambda contents: contents[:-1], "it is cut off after 59 of the 60 bytes of its tensors"),
    "bytes at the end": (lambda contents: contents + b"\0\0\0", "3 bytes follow its last tensor"),
    "a huge header length": (
        lambda contents: b"\xff" * 8 + contents[8:],
        "its header claims 18446744073709551615 bytes, more than the 8388608 that a spec may have",
    ),
    "a header one byte too large": (
        lambda contents: (8 * 2**20 + 1).to_bytes(8, "little") + contents[8:],
        "its header claims 8388609 bytes, more than the 8388608 that a spec may have",
    ),
    "a header of length 0": (lambda contents: bytes(8), "its header is not valid JSON: expecting value at character 0"),
    "not UTF-8": (not_utf8, "its header is not UTF-8 at byte 2253"),
    "a pickle": (
        lambda _: b"\x80\x04\x95" + bytes(200),
        "its header claims 9766016 bytes, more than the 8388608 that a spec may have",
    ),
    "deep nesting in the header": (deep_header, "its header is not valid JSON: more than 32 levels of nesting"),
    "deep nesting in the document": (
        with_header(deep_document),
        "its document is not valid JSON: more than 32 levels of nesting",
    ),
    "a header that is a list": (
        lambda contents: assembled("[]", split(contents)[1]),
        "its header is not a JSON object",
    ),
    "a header that is no JSON": (
        lambda contents: assembled('{"a":', split(contents)[1]),
        "its header is not valid JSON: expecting value at character 5",
    ),
    "a tensor twice": (
        with_text('"layers.2.scale"', '"layers.2.lower"'),
        "its header is not valid JSON: the key 'layers.2.lower' twice in one object",
    ),
    "a key twice in the document": (
        with_text('"low":', '"high":', document=True),
        "its document is not valid JSON: the key 'high' twice in one object",
    ),
    "half a surrogate pair in the document": (
        with_text('"llama"', '"\\ud800"', document=True),
        "its document is not valid JSON: half a surrogate pair in a text",
    ),
    "half a surrogate pair in the header": (
        with_text("llama", "\\ud800"),
        "its header is not valid JSON: half a surrogate pair in a text",
    ),
    "NaN in the document": (
        with_text("0.5", "NaN", document=True),
        "its document is not valid JSON: NaN, which is no JSON number",
    ),
    "Infinity in the document": (
        with_text("0.5", "-Infinity", document=True),
        "its document is not valid JSON: -Infinity, which is no JSON number",
    ),
    "a number beyond float64": (
        with_text("0.5", "1e999", document=True),
        "at 'evidence.held_out.benign_first_token_kl.value', the number is not finite",
    ),
    "a number of 5000 digits": (
        with_text('"seed":7', '"seed":' + "7" * 5000, document=True),
        "its document is not valid JSON: a number of 5000 digits",
    ),
    "no metadata": (
        with_header(lambda header: header.pop("__metadata__")),
        "it has no metadata, so it is some other safetensors file",
    ),
    "metadata that is a list": (
        with_header(lambda header: header.update(__metadata__=[])),
        "its metadata is not one text named 'neuron_guard'",
    ),
    "other metadata": (
        with_header(lambda header: header.update(__metadata__={"format": "pt"})),
        "its metadata is not one text named 'neuron_guard'",
    ),
    "more metadata": (
        with_header(lambda header: header["__metadata__"].update(format="pt")),
        "its metadata is not one text named 'neuron_guard'",
    ),
    "a document that is no text": (
        with_header(lambda header: header["__metadata__"].update(neuron_guard=1)),
        "its metadata is not one text named 'neuron_guard'",
    ),
    "an empty document": (
        with_header(lambda header: header["__metadata__"].update(neuron_guard="")),
        "its document is not valid JSON: expecting value at character 0",
    ),
    "a document that is a list": (
        with_header(lambda header: header["__metadata__"].update(neuron_guard="[]")),
        "at 'document', input should be an object",
    ),
    "an entry that is a number": (
        with_header(lambda header: header.update({NEURONS: 3})),
        "tensor 'layers.2.neurons' is not described by exactly a dtype, a shape and data_offsets",
    ),
    "an entry with a field more": (
        set_entry(NEURONS, order="C"),
        "tensor 'layers.2.neurons' is not described by exactly a dtype, a shape and data_offsets",
    ),
    "an unknown dtype": (set_entry(NEURONS, dtype="Q7"), "tensor 'layers.2.neurons' has a dtype other than I32 or F32"),
    "a dtype that is a list": (
        set_entry(NEURONS, dtype=["I32"]),
        "tensor 'layers.2.neurons' has a dtype other than I32 or F32",
    ),
    "bfloat16": (
        set_entry("layers.2.scale", dtype="BF16", shape=[4]),
        "tensor 'layers.2.scale' has a dtype other than I32 or F32",
    ),
    "float neurons": (set_entry(NEURONS, dtype="F32"), "the tensor layers.2.neurons is F32, not I32"),
    "integer bounds": (set_entry("layers.3.upper", dtype="I32"), "the tensor layers.3.upper is I32, not F32"),
    "two dimensions": (
        set_entry(NEURONS, shape=[1, 2]),
        "tensor 'layers.2.neurons' does not have one dimension of at least one value",
    ),
    "no dimension": (
        set_entry("layers.3.upper", shape=[]),
        "tensor 'layers.3.upper' does not have one dimension of at least one value",
    ),
    "a negative size": (
        set_entry(NEURONS, shape=[-2]),
        "tensor 'layers.2.neurons' does not have one dimension of at least one value",
    ),
    "a size that is true": (
        set_entry("layers.3.upper", shape=[True]),
        "tensor 'layers.3.upper' does not have one dimension of at least one value",
    ),
    "a size of 10^30": (
        set_entry(NEURONS, shape=[10**30]),
        "tensor 'layers.2.neurons' does not have one dimension of at least one value",
    ),
    "no values": (
        set_entry(NEURONS, shape=[0], data_offsets=[0, 0]),
        "tensor 'layers.2.neurons' does not have one dimension of at least one value",
    ),
    "a size that does not fit": (
        set_entry(NEURONS, shape=[3]),
        "tensor 'layers.2.neurons' has 8 bytes, which do not fit its shape and dtype",
    ),
    "offsets that are text": (
        set_entry(NEURONS, data_offsets=["0", "8"]),
        "tensor 'layers.2.neurons' does not have two offsets that are whole numbers",
    ),
    "three offsets": (
        set_entry(NEURONS, data_offsets=[0, 4, 8]),
        "tensor 'layers.2.neurons' does not have two offsets that are whole numbers",
    ),
    "offsets in reverse": (
        set_entry(NEURONS, data_offsets=[8, 0]),
        "tensor 'layers.2.neurons' has -8 bytes, which do not fit its shape and dtype",
    ),
    "overlapping offsets": (
        set_entry("layers.3.lower", data_offsets=[0, 4]),
        "the bytes of tensor 'layers.2.lower' overlap those before them",
    ),
    "a missing tensor": (without_tensor("layers.3.upper", listed=False), "the tensor layers.3.upper is missing"),
    "a missing tensor that is listed": (
        without_tensor("layers.3.upper", listed=True),
        "the tensor layers.3.upper is missing",
    ),
    "a missing direction": (
        without_tensor("trigger.direction", listed=False),
        "the tensor trigger.direction is missing",
    ),
    "an unknown tensor": (extra_tensor, "the tensor 'layers.0.bias' belongs to no guarded layer or trigger"),
    "a tensor with a strange name": (
        with_text(f'"{NEURONS}"', '"' + "\\u001b[2J\\n" * 40 + '"'),
        "the tensor layers.2.neurons is missing",
    ),
    "a list without a tensor": (
        with_document(lambda document: document["tensors"].pop(NEURONS)),
        "the tensor layers.2.neurons is not as the document lists it",
    ),
    "a list with a tensor more": (
        set_at("tensors", "other", value={"dtype": "F32", "shape": [1]}),
        "the document lists a tensor 'other' that the file does not have",
    ),
    "a list with another shape": (
        set_at("tensors", NEURONS, "shape", value=[3]),
        "the tensor layers.2.neurons is not as the document lists it",
    ),
    "another schema version": (set_at("schema_version", value=2), "at 'schema_version', input should be 1"),
    "no schema version": (
        with_document(lambda document: document.pop("schema_version")),
        "at 'schema_version', field required",
    ),
    "a field more": (set_at("aim", value="harm"), "at 'aim', extra inputs are not permitted"),
    "a number as text": (set_at("model", "d_ff", value="9"), "at 'model.d_ff', input should be a valid integer"),
    "a seed as a float": (
        set_at("provenance", "seed", value=7.0),
        "at 'provenance.seed', input should be a valid integer",
    ),
    "a truth as a number": (
        set_at("evidence", "trials", 0, "chosen", value=1),
        "at 'evidence.trials.0.chosen', input should be a valid boolean",
    ),
    "an unknown outcome": (
        set_at("evidence", "verdict", "outcome", value="fine"),
        "at 'evidence.verdict.outcome', input should be 'effective' or 'refuted'",
    ),
    "a p-value above 1": (
        set_at("evidence", "verdict", "p_value", value=1.5),
        "at 'evidence.verdict.p_value', input should be less than or equal to 1",
    ),
    "a digest in capitals": (
        set_at("model", "mlp_digest", value="A" * 64),
        "at 'model.mlp_digest', string should match pattern '^[0-9a-f]{64}$'",
    ),
    "a layer beyond the model": (
        set_at("model", "num_hidden_layers", value=3),
        "layer 3 is named, but the model has 3 layers",
    ),
    "a neuron beyond the model": (
        set_at("model", "d_ff", value=4),
        "neuron 4 of layer 2 is named, but the model's d_ff is 4",
    ),
    "layers out of order": (set_at("layers", value=[3, 2]), "the guarded layers [3, 2] are not sorted, each once"),
    "a layer twice": (set_at("layers", value=[2, 3, 3]), "the guarded layers [2, 3, 3] are not sorted, each once"),
    "a negative layer": (set_at("layers", value=[-2, 3]), "at 'layers.0', input should be greater than or equal to 0"),
    "a trigger after the gate": (
        set_at("trigger", "layer", value=3),
        "the trigger reads layer 3, after the first guarded layer 2",
    ),
    "a trigger for another width": (
        set_at("model", "d_model", value=4),
        "the trigger's direction has 3 entries, the model's d_model is 4",
    ),
    "a trigger that is gone": (
        set_at("trigger", value=None),
        "the tensor 'trigger.direction' belongs to no guarded layer or trigger",
    ),
    "NaN as a bound": (with_value("layers.2.lower", 1, NAN), "at 'layers.2.lower', a value is NaN"),
    "NaN in the direction": (with_value("trigger.direction", 0, NAN), "at 'trigger.direction', a value is NaN"),
    "a negative neuron": (
        with_value(NEURONS, 0, MINUS_ONE),
        "at 'layers.2.neurons.0', input should be greater than or equal to 0",
    ),
    "neurons out of order": (
        with_value(NEURONS, 0, b"\x05\0\0\0"),
        "at 'layers.2', the neurons of layer 2 are not sorted, each once",
    ),
    "an infinite scale": (
        with_value("layers.2.scale", 0, b"\x00\x00\x80\x7f"),
        "at 'layers.2.scale', a value is not finite",
    ),
    "a lower bound of infinity": (
        with_value("layers.2.lower", 1, b"\x00\x00\x80\x7f"),
        "at 'layers.2', neuron 4 of layer 2 is bounded to an infinity",
    ),
    "a lower bound above the upper": (
        with_value("layers.2.lower", 0, b"\x00\x00\x80\x3f"),
        "at 'layers.2', neuron 1 of layer 2 has lower bound 1.0 above upper 0.125",
    ),
    "more harm with the guard": (
        set_at("evidence", "held_out", "harmful_compliance", "off", "value", value=0.25),
        "at 'evidence', the verdict is effective, but harmful compliance is higher with the guard than without",
    ),
    "effective without an edit": (without_edits, "the verdict is effective, but no layer is edited"),
}

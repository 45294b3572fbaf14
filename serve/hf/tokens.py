"""Single tokens as text and as bytes, for log probabilities."""

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from serve.http.prompts import Prompts

REPLACED = "\N{REPLACEMENT CHARACTER}"


class TokenTexts:
    """Looks tokens up once each; for the event loop alone."""

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts
        self._known: dict[int, tuple[str, list[int] | None]] = {}
        alphabet: dict[int, str] = bytes_to_unicode()  # type: ignore[no-untyped-call]
        self._bytes = {character: byte for byte, character in alphabet.items()}
        self._bytewise = _is_bytewise(prompts.tokenizer)

    def of(self, token: int) -> tuple[str, list[int] | None]:
        """How `token` reads by itself, and its bytes, also of a part of a character; None where they are unknown."""
        if token not in self._known:
            text = self._prompts.text_of([token])
            self._known[token] = text, self._part(token) if REPLACED in text else list(text.encode())
        return self._known[token]

    def _part(self, token: int) -> list[int] | None:
        raw = str(self._prompts.tokenizer.convert_ids_to_tokens(token))
        if self._bytewise and all(character in self._bytes for character in raw):
            return [self._bytes[character] for character in raw]
        if len(raw) == 6 and raw.startswith("<0x") and raw.endswith(">"):
            return [int(raw[3:5], 16)]
        return None


def _is_bytewise(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether tokens are spelled in GPT-2's alphabet of 256 characters, one for each byte."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return "ByteLevel" in repr(getattr(backend, "decoder", None))

"""Prompt sets: read, checked as a whole, wrapped, kept apart, and turned into token ids.

Everything that can be wrong with a user's prompts is found here, before a model is loaded. Prompts may be harmful
requests, so neither an error nor the repr of an object here shows their text.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from calibration.prompts.hub import read_hub_rows
from calibration.prompts.rows import FORMATS, PromptFileError, Row, kind_of, read_rows
from guard.errors import NeuronGuardError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACEHOLDER = "{prompt}"
PROMPT_COLUMNS = ("prompt", "goal", "instruction", "behavior")
KIND_COLUMNS = ("kind", "category", "type")


class OverlapError(NeuronGuardError):
    """A request is both in the harmful and in the benign set."""


class ChatTemplateError(NeuronGuardError):
    """The tokenizer has no chat template and none was waived."""


class Request(BaseModel):
    """One request and, where known, what a model that refuses or complies says. `row` is its place in its source.

    `goal` is what the request is after, where the prompt wraps it: requests of one goal belong to one split. `kind` is
    what its source calls requests like it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(repr=False, min_length=1)
    refusal: str | None = Field(default=None, repr=False)
    compliance: str | None = Field(default=None, repr=False)
    goal: str | None = Field(default=None, repr=False)
    kind: str | None = None
    row: int = 0

    @property
    def group(self) -> str:
        """What keeps variants of one request together: the goal, or else the prompt, normalised."""
        return normalise(self.goal or self.prompt)


class RequestSet(BaseModel):
    """The requests of one source. `digest` is the SHA-256 of their canonical JSON: the same for the same requests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    digest: str
    requests: tuple[Request, ...] = Field(repr=False)
    duplicates_dropped: int = 0
    without_prompt: int = 0


class Jailbreaks(BaseModel):
    """Either `templates`, each with "{prompt}" in it, for every request; or `attacks`, finished prompts with their
    goals.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    digest: str
    templates: tuple[str, ...] = Field(default=(), repr=False)
    attacks: tuple[Request, ...] = Field(default=(), repr=False)
    without_prompt: int = 0


class ContrastPair(BaseModel):
    """The same request plain (x, `reference`) and wrapped in a jailbreak (x*, `harmful`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: Request
    harmful: Request

    @property
    def group(self) -> str:
        """The group of the plain request."""
        return self.reference.group


def normalise(text: str) -> str:
    """The text without differences that make no other request: compatibility forms, case, white space."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(unicodedata.normalize("NFKC", folded.casefold()).split())


def load_requests(source: str, *, split: str | None = None) -> RequestSet:
    """Read prompts from a csv, json or jsonl file or a hub data set ("name" or "name:configuration").

    Columns, case ignored: `prompt`, else `goal` (with `target` as compliance, AdvBench), else `instruction` (with
    `input`, Alpaca), else `behavior` (with `contextstring`, HarmBench); `refusal`, `compliance` and, beside `prompt`,
    `goal` are read where present, and the first of `kind`, `category`, `type` (XSTest) that is text says what kind of
    request a row is. `source#column=value` keeps only such rows, as in `xstest_prompts.csv#label=safe`.
    Raises PromptFileError for the first bad row.
    """
    requests: dict[str, Request] = {}
    rows = without_prompt = 0
    for row in _rows(source, split):
        if row.may_lack_prompt and row.cells.get("prompt", "") is None:
            without_prompt += 1
            continue
        rows += 1
        request = _request(source, row)
        requests.setdefault(normalise(request.prompt), request)
    if not requests:
        raise PromptFileError(source, None, "holds no prompt")
    kept = tuple(requests.values())
    return RequestSet(
        source=source,
        digest=_digest([request.model_dump(exclude={"row", "kind"}) for request in kept]),
        requests=kept,
        duplicates_dropped=rows - len(kept),
        without_prompt=without_prompt,
    )


def load_jailbreaks(source: str, *, split: str | None = None) -> Jailbreaks:
    """Read jailbreaks: rows with a `template` that holds "{prompt}", or rows with `goal` and the finished `prompt`.

    Rows of a JailbreakBench artifact whose prompt is null found no attack; they are counted in `without_prompt`.
    Raises PromptFileError for the first bad row.
    """
    rows = list(_rows(source, split))
    if not rows:
        raise PromptFileError(source, None, "holds no jailbreak")
    if "template" in rows[0].cells:
        templates = tuple(dict.fromkeys(_template(source, row) for row in rows))
        return Jailbreaks(source=source, digest=_digest(list(templates)), templates=templates)
    for row in rows:
        if not {"goal", "prompt"} <= row.cells.keys():
            reason = "a jailbreak is a column 'template', or columns 'goal' and 'prompt'"
            raise PromptFileError(source, row.number, reason)
        _text(source, row, "goal")
    found = load_requests(source, split=split)
    return Jailbreaks(source=source, digest=found.digest, attacks=found.requests, without_prompt=found.without_prompt)


def wrap(requests: Sequence[Request], jailbreaks: Jailbreaks) -> tuple[ContrastPair, ...]:
    """Contrast pairs of each request with each of its jailbreaks, in order.

    Templates apply to every request. Attacks carry their goal: where that is one of `requests`, its texts are used;
    where it is not, the goal itself is the plain request.
    """
    pairs = []
    for request in requests:
        for template in jailbreaks.templates:
            update = {"prompt": template.replace(PLACEHOLDER, request.prompt), "goal": request.goal or request.prompt}
            pairs.append(ContrastPair(reference=request, harmful=request.model_copy(update=update)))
    known = {request.group: request for request in requests} | {normalise(r.prompt): r for r in requests}
    for attack in jailbreaks.attacks:
        goal = attack.goal or attack.prompt
        plain = known.get(attack.group) or Request(
            prompt=goal, refusal=attack.refusal, compliance=attack.compliance, goal=goal, row=attack.row
        )
        texts = {
            "goal": plain.goal or plain.prompt,
            "refusal": attack.refusal or plain.refusal,
            "compliance": attack.compliance or plain.compliance,
        }
        pairs.append(ContrastPair(reference=plain, harmful=attack.model_copy(update=texts)))
    return tuple(pairs)


def require_disjoint(harmful: RequestSet, benign: RequestSet) -> None:
    """Raise OverlapError, naming rows, where a prompt or a goal of one set is a prompt of the other."""
    benign_rows = {normalise(request.prompt): request.row for request in benign.requests}
    overlap = []
    for request in harmful.requests:
        row = benign_rows.get(normalise(request.prompt), benign_rows.get(request.group))
        if row is not None:
            overlap.append(f"{request.row} = {row}")
    if overlap:
        shown = ", ".join(overlap[:5]) + (f" and {len(overlap) - 5} more" if len(overlap) > 5 else "")
        raise OverlapError(
            f"{len(overlap)} requests are both in {harmful.source} and in {benign.source} (rows {shown}); "
            "remove them from one of the two"
        )


def encode(tokenizer: "PreTrainedTokenizerBase", text: str, *, template: bool) -> tuple[int, ...]:
    """Token ids of a prompt: as the user's turn of the chat template with the generation prompt, or plain.

    Raises ChatTemplateError where a template is asked for and the tokenizer has none.
    """
    if not template:
        return tuple(tokenizer(text)["input_ids"])
    if not tokenizer.chat_template:
        raise ChatTemplateError(
            "the tokenizer has no chat template: pass --no-template to give the model plain prompts"
        )
    turns = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    return tuple(ids)


def _rows(source: str, split: str | None) -> Iterator[Row]:
    path, column, value = source, "", ""
    filtered = re.fullmatch(r"(.+)#([^#=]+)=([^#]*)", source)
    if filtered and not Path(source).exists():
        path, column, value = filtered[1], filtered[2].strip().lower(), filtered[3].strip()
    is_file = Path(path).exists() or Path(path).suffix.lower() in FORMATS or path.startswith((".", "/", "~"))
    rows = read_rows(Path(path).expanduser()) if is_file else read_hub_rows(path, split)
    if not column:
        return rows
    return (row for row in rows if _cell_is(source, row, column, value))


def _cell_is(source: str, row: Row, column: str, value: str) -> bool:
    if column not in row.cells:
        raise PromptFileError(source, row.number, f"has no column {column!r} to choose rows by")
    return str(row.cells[column]).strip() == value


def _request(source: str, row: Row) -> Request:
    column = next((name for name in PROMPT_COLUMNS if name in row.cells), None)
    if column is None:
        reason = (
            f"has no prompt: a column {', '.join(map(repr, PROMPT_COLUMNS[:-1]))} or {PROMPT_COLUMNS[-1]!r} is needed"
        )
        raise PromptFileError(source, row.number, reason)
    prompt = _text(source, row, column)
    if column == "instruction" and (more := _optional_text(source, row, "input")):
        prompt = f"{prompt}\n\n{more}"
    if column == "behavior" and (context := _optional_text(source, row, "contextstring")):
        prompt = f"{context}\n\n---\n\n{prompt}"
    compliance = _optional_text(source, row, "compliance")
    if column == "goal" and compliance is None:
        compliance = _optional_text(source, row, "target")
    return Request(
        prompt=prompt,
        refusal=_optional_text(source, row, "refusal"),
        compliance=compliance,
        goal=_optional_text(source, row, "goal") if column == "prompt" else None,
        kind=next((_named(row, name) for name in KIND_COLUMNS if _named(row, name)), None),
        row=row.number,
    )


def _named(row: Row, column: str) -> str | None:
    """The text of a cell that only names something, None where there is none."""
    cell = row.cells.get(column)
    return cell.strip() or None if isinstance(cell, str) else None


def _template(source: str, row: Row) -> str:
    text = _text(source, row, "template")
    if text.count(PLACEHOLDER) != 1:
        reason = f"the template holds {PLACEHOLDER} {text.count(PLACEHOLDER)} times; once is needed"
        raise PromptFileError(source, row.number, reason)
    return text


def _text(source: str, row: Row, column: str) -> str:
    text = _optional_text(source, row, column)
    if text is None:
        raise PromptFileError(source, row.number, f"{column!r} is empty")
    return text


def _optional_text(source: str, row: Row, column: str) -> str | None:
    cell = row.cells.get(column)
    if cell is None:
        return None
    if not isinstance(cell, str):
        raise PromptFileError(source, row.number, f"{column!r} is {kind_of(cell)}, not a text")
    try:
        cell.encode()
    except UnicodeEncodeError:
        raise PromptFileError(source, row.number, f"{column!r} holds half a surrogate pair") from None
    return cell.strip() or None


def _digest(content: Iterable[Mapping[str, object] | str]) -> str:
    canonical = json.dumps(list(content), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()

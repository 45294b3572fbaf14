"""Every answer of a run, one line each, so that a run that was killed goes on where it was and ends the same.

Answers come in batches of fixed members, and a batch counts only once all its lines are there and whole: what a kill
tore is asked again in the same company, so that rounding is the same too. A record belongs to one setting. Texts that
could do harm are left out unless asked for, and a hash stands in their place; classes are given before that.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from calibration.judging.behaviour import Behaviour
from guard.errors import NeuronGuardError


class RecordError(NeuronGuardError):
    """A record of another run than the one that goes on with it."""


class Answer(BaseModel):
    """One answer: to which request (`digest`) of which set under which condition, its class by each judge.

    `text` is None where it is left out; `answer_digest` and `words` stand for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    condition: str
    prompt_set: str
    place: int
    digest: str
    answer_digest: str
    words: int
    classes: dict[str, Behaviour]
    text: str | None = None


class Record:
    """The answers in `path`; `setting` is all that decides them. RecordError where the file is another setting's."""

    def __init__(self, path: Path, setting: Mapping[str, object]) -> None:
        self.path = path
        self._answers: dict[tuple[str, str, int], Answer] = {}
        head = json.dumps({"setting": dict(setting)}, sort_keys=True)
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        if len(lines) == 1 and head.encode().startswith(lines[0]):  # nothing yet, or a head that was torn
            path.write_text(head + "\n", "utf-8")
            return
        if lines[0] != head.encode():
            raise RecordError(
                f"{path} is the record of a run with other settings: name another folder, or move it away."
            )
        whole = len(lines[0]) + 1
        for line in lines[1:-1]:  # what follows the last line break was torn
            try:
                answer = Answer.model_validate_json(line)
            except ValidationError as error:
                raise RecordError(f"{path} has a line that is no answer: move it away.") from error
            self._answers[self._key(answer)] = answer
            whole += len(line) + 1
        with path.open("r+b") as file:
            file.truncate(whole)

    @staticmethod
    def _key(answer: Answer) -> tuple[str, str, int]:
        return answer.condition, answer.prompt_set, answer.place

    @property
    def count(self) -> int:
        """How many answers there are."""
        return len(self._answers)

    def has(self, condition: str, prompt_set: str, places: Sequence[int]) -> bool:
        """Whether all of a batch's answers are there."""
        return all((condition, prompt_set, place) in self._answers for place in places)

    def add(self, answers: Sequence[Answer]) -> None:
        """Write a batch, and have it on the disk before it counts. What a kill left of it stays as it is."""
        new = [answer for answer in answers if self._key(answer) not in self._answers]
        with self.path.open("ab") as file:
            file.write(b"".join(answer.model_dump_json(exclude_none=True).encode() + b"\n" for answer in new))
            file.flush()
            os.fsync(file.fileno())
        self._answers |= {self._key(answer): answer for answer in new}

    def answers(self, condition: str, prompt_set: str) -> list[Answer]:
        """The answers of one condition to one set, in the order of the requests."""
        found = [one for key, one in self._answers.items() if key[:2] == (condition, prompt_set)]
        return sorted(found, key=lambda one: one.place)

"""What the guard does to the tokens of a batch, counted where the tensors are, row by row, without waiting for them.

Whoever runs the model says which tokens of a pass count: padding does not, nor do tokens that are computed a second
time, nor the passes of a self-test. So nothing is counted unless it was asked for, and a row's numbers are those of one
request: drift is judged by requests, since tokens of one request are no independent witnesses. The price is a look at
the k edited neurons before and after the edit, some ten small kernels a pass and guarded layer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from guard.errors import EditNotAppliedError
from guard.runtime.buffers import EditBuffers


@dataclass(frozen=True)
class Tally:
    """Tokens guarded, how many of them with an active trigger (all of them without one), and the clips of each guarded
    layer, first to last: values of edited neurons that the edit changed, k of them a token at most.
    """

    tokens: int
    active: int
    clips: tuple[int, ...]

    @classmethod
    def none(cls) -> "Tally":
        """What has not begun; the sum with it is the other one."""
        return cls(0, 0, ())

    def __add__(self, other: "Tally") -> "Tally":
        """The sums."""
        clips = tuple(mine + theirs for mine, theirs in zip_longest(self.clips, other.clips, fillvalue=0))
        return Tally(self.tokens + other.tokens, self.active + other.active, clips)


class Batch:
    """The batch under way, shared by its layers: `present` bool [rows, tokens], the pass's tokens that count, or None.

    `tokens` and `active` are int64 [rows].
    """

    present: Tensor | None = None
    tokens: Tensor
    active: Tensor


class LayerCounts:
    """The clips of one layer, int64 [rows] of the batch under way; `first` of the guarded layers also counts tokens."""

    clips: Tensor

    def __init__(self, batch: Batch, edit: EditBuffers, *, first: bool) -> None:
        self.edit = edit
        self._batch = batch
        self._first = first

    def add(self, h: Tensor, edited: Tensor, active: Tensor | None) -> None:
        """Count one pass: `h` and `edited` [..., d_ff] before and after the edit, `active` bool [...] or None.

        EditNotAppliedError if the layer sees other tokens than were announced.
        """
        present = self._batch.present
        if present is None:
            return
        rows, tokens = present.shape
        if h.shape[:-1].numel() != rows * tokens:
            raise EditNotAppliedError(
                f"{rows} rows of {tokens} tokens were announced to be counted, but a guarded layer sees "
                f"{tuple(h.shape[:-1])}."
            )
        present, neurons = present.to(h.device), self.edit.neurons
        changed = h.index_select(-1, neurons) != edited.index_select(-1, neurons)  # [..., k]
        changed = changed.view(rows, tokens, -1) & present[..., None]
        self.clips.add_(changed.view(rows, -1).sum(-1))
        if self._first:
            self._batch.tokens.add_(present.sum(-1))
            marked = present if active is None else present & active.view(rows, tokens)
            self._batch.active.add_(marked.sum(-1))


class Counts:
    """Everything counted on one guarded model, whose guarded layers have `edits`.

    Counting is for the thread that runs the model; the totals may be read from another.
    """

    def __init__(self, edits: Sequence[EditBuffers]) -> None:
        self._batch = Batch()
        self.layers = [LayerCounts(self._batch, edit, first=not place) for place, edit in enumerate(edits)]
        self._totals = torch.zeros(2 + len(edits), dtype=torch.int64)
        self._before = self._totals  # the totals when the batch under way began
        self._rows: Tensor | None = None

    @contextmanager
    def counting(self, present: Tensor) -> Iterator[None]:
        """Within the block passes are counted: one that sees the tokens of `present`, bool [rows, tokens], then others,
        each announced by `going_on`. Tokens outside `present` are guarded as all are, and not counted.
        """
        batch, (rows, _) = self._batch, present.shape
        for layer in self.layers:
            layer.clips = torch.zeros(rows, dtype=torch.int64, device=layer.edit.neurons.device)
        batch.tokens, batch.active = (torch.zeros_like(self.layers[0].clips) for _ in range(2))
        batch.present = present
        self._before = self._totals.to(batch.tokens.device)
        try:
            yield
        finally:
            batch.present = None
            self.add_up()

    def going_on(self, rows: Tensor) -> None:
        """The next pass has one token a row; `rows` bool [rows] says whose count."""
        self._batch.present = rows[:, None]

    def rows(self) -> list[Tally]:
        """What each row of the last block came to; waits for the device."""
        if self._rows is None:
            return []
        return [Tally(tokens, active, tuple(clips)) for tokens, active, *clips in self._rows.T.tolist()]

    def totals(self) -> Tally:
        """What all blocks so far came to, that under way up to the last `add_up`; waits for the device."""
        tokens, active, *clips = self._totals.tolist()
        return Tally(tokens, active, tuple(clips))

    def add_up(self) -> None:
        """Take the passes of the block under way into the totals; waits for nothing."""
        batch = self._batch
        clips = [layer.clips.to(batch.tokens.device) for layer in self.layers]
        self._rows = torch.stack([batch.tokens, batch.active, *clips])  # [2 + layers, rows]
        # a new tensor, so that a reader in another thread never sees one that is being written
        self._totals = self._before + self._rows.sum(-1)

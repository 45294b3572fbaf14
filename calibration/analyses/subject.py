"""What an analysis may look at: the model, the requests, and everything that the calibration found on them."""

from dataclasses import dataclass
from functools import cached_property

from torch import nn
from transformers import PreTrainedTokenizerBase

from calibration.prompts.material import Encoder, Material, Sources
from calibration.search.findings import Findings, Settings
from calibration.search.gate import Gate, Late
from guard.spec.edit_spec import LayerEdit


@dataclass(frozen=True)
class Subject:
    """A finished calibration, on which analyses are made.

    `sources` are the requests as text by split, in the order of the rows of `material`'s batches; `findings` holds the
    mediation, the gate, its late layers and the verdict.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    sources: Sources
    material: Material
    findings: Findings
    settings: Settings

    @property
    def gate(self) -> Gate:
        """The gate found; without members where nothing was."""
        return self.findings.gate

    @property
    def late(self) -> Late:
        """The late layers of the calibration and validation splits, kept ready for trials."""
        return self.findings.late

    @cached_property
    def edits(self) -> tuple[LayerEdit, ...]:
        """The edits of the gate at the bounds chosen; none where nothing was found."""
        return self.gate.searched.edits if self.gate.searched else ()

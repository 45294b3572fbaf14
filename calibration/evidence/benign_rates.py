"""How often a guard acts on benign requests, so that whoever serves it can tell when traffic is no longer like them.

Counted by the guard itself, in the pass that serves, over the prompt and the model's own answer of held-out requests. A
rate's interval is Wilson's for a share of the same mean that is 0 or 1 for each request: the widest that shares can
have. That costs sensitivity later and buys an upper end that holds for a rate which was 0 on all requests, too.
"""

from collections.abc import Sequence

import torch
from torch import nn

from calibration.effects.outcome import readout_logits
from calibration.effects.statistics import wilson_estimate
from calibration.prompts.sequences import Batch
from guard.hf import install_edits
from guard.spec.edit_spec import BenignRates, LayerClips, LayerEdit, Trigger


@torch.inference_mode()
def benign_rates(
    model: nn.Module, batches: Sequence[Batch], edits: Sequence[LayerEdit], trigger: Trigger | None
) -> BenignRates | None:
    """The rates of `edits` on the compliance rows of `batches`; None where there is no edit."""
    if not edits:
        return None
    tallies = []
    with install_edits(model, edits, trigger) as installation:
        counts = installation.count()
        for batch in batches:
            present = batch.attention_mask.bool()
            present[batch.size :] = False
            with counts.counting(present):
                readout_logits(model, batch)
            tallies += counts.rows()[: batch.size]
    clips = []
    for place, edit in enumerate(sorted(edits, key=lambda edit: edit.layer)):
        shares = [tally.clips[place] / (tally.tokens * len(edit.neurons)) for tally in tallies]
        clips.append(LayerClips(layer=edit.layer, share=wilson_estimate(sum(shares), len(shares))))
    triggered = None if trigger is None else wilson_estimate(sum(tally.active > 0 for tally in tallies), len(tallies))
    return BenignRates(triggered=triggered, clips=tuple(clips))

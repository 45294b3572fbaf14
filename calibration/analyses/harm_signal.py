"""Early harm signal and its path: where the model first tells harm, and whether that is what opens the gate late.

Probes are fitted on calibration requests, layers are chosen on validation ones, and everything is read on held-out
ones. Two directions of each early stream are tried. The probe's knows nothing of the gate: it tells harm best, but a
direction that tells need not be one that is used. The other is what the gate reads, the gradient of its opening at its
door, and knows nothing of labels: where that tells harm too, and exchanging it opens and closes the gate beyond random
directions of the same norm, a signal causes the gate's activity. Its layer is the first at which half of the difference
that it makes at the door is there; what comes before may well cause it, in other directions.

Cost: for each layer before the gate about 20 runs of the pairs (at most 32) from there to the end, 20 with gradients
before the gate alone; probes cubic in d_model; the held-out answers generated once more.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from calibration.analyses.gate_activity import GateActivity, Opening, gate_activity, opening
from calibration.analyses.signal_disruption import SideBySide, best_stretch
from calibration.analyses.signal_exchange import FROZEN, SignalRuns, exchanged, random_directions, what_the_gate_reads
from calibration.analyses.signal_pairs import TOKEN_GROUPS, Pairs, TokenGroup, group_states, signal_pairs
from calibration.analyses.subject import Subject
from calibration.effects.auroc import auroc_estimate
from calibration.effects.statistics import bootstrap_estimates
from calibration.runs.resume import record
from calibration.search.findings import Advance
from calibration.search.trigger import TokenStates, fit_direction
from guard.analyses.harm_signal import READS_OUT, AgainstRandom, Direction, Exchange, HarmSignal, Path, Readout
from guard.errors import NeuronGuardError

REQUESTS = 128  # of each kind that are probed
PAIRS = 32  # that are run again
RANDOM = 4
CARRIED = 0.5

States = dict[tuple[int, TokenGroup], Tensor]


class Contrast:
    """One split's pairs, and the streams of their benign and harmful requests by early layer and token group."""

    def __init__(self, subject: Subject, split: str, early: Sequence[int]) -> None:
        pairs = signal_pairs(getattr(subject.material, split), subject.sources.contrast, REQUESTS)
        self.benign, self.harmful = (
            group_states(subject.model, [pair[side] for pair in pairs], early) for side in (0, 1)
        )
        self.pairs: Pairs = pairs[: max(1, PAIRS // pairs[0][1].size)]

    def scores(self, layer: int, group: TokenGroup, direction: Tensor) -> tuple[Tensor, Tensor]:
        """The components of harmful and benign requests along a direction, [requests] each."""
        return self.harmful[layer, group] @ direction, self.benign[layer, group] @ direction


def fit_probes(contrast: Contrast, early: Sequence[int]) -> States:
    """The unit direction [d_model] of a logistic probe for each early layer and token group."""
    found = {}
    for layer in early:
        for group in TOKEN_GROUPS:
            direction = fit_direction(
                _one_token(contrast.harmful[layer, group]), _one_token(contrast.benign[layer, group]), 0
            )
            found[layer, group] = direction / direction.norm().clamp(min=1e-12)
    return found


def _one_token(states: Tensor) -> TokenStates:
    rows = len(states)
    return TokenStates(states[:, None], torch.ones(rows, 1, dtype=torch.bool), torch.zeros(rows, dtype=torch.long))


def _tells(contrast: Contrast, layer: int, direction: Tensor) -> bool:
    """Whether the point of the AUROC is at `READS_OUT`: by the interval, fewer requests would put the layer later."""
    return auroc_estimate(*contrast.scores(layer, "last_prompt", direction)).value >= READS_OUT


def first_there(contrast: Contrast, direction: Tensor, early: Sequence[int]) -> tuple[int, bool]:
    """The earliest layer after which a component tells harm as far apart as `CARRIED` of the way at the last early
    layer, and True; the last early layer and False where it tells harm in none.
    """

    def apart(layer: int) -> float:
        harmful, benign = contrast.scores(layer, "last_prompt", direction)
        return float(harmful.mean() - benign.mean())

    for layer in early:
        if _tells(contrast, layer, direction) and apart(layer) >= CARRIED * apart(early[-1]):
            return layer, True
    return early[-1], False


def signal_runs(subject: Subject, pairs: Pairs, activity: GateActivity, scale: Opening, layer: int) -> list[SignalRuns]:
    """The pairs' runs as they leave `layer`."""
    return [SignalRuns(activity, scale, *(record(subject.model, batch, layer + 1) for batch in pair)) for pair in pairs]


@torch.no_grad()  # not inference_mode: gradients are taken on this scale later
def gate_scale(subject: Subject, pairs: Pairs, activity: GateActivity) -> Opening:
    """The scale of the gate's opening, from benign and harmful calibration requests."""
    first = min(activity.neurons)
    written = [[activity.read(record(subject.model, batch, first))[1] for batch in pair] for pair in pairs]
    benign, harmful = (torch.cat(side).cpu() for side in zip(*written, strict=True))
    return opening(benign, harmful)


def _against(effects: Tensor, random: Tensor, seed: int) -> list[AgainstRandom]:
    """Effects [pairs, k] and those of random directions [directions, pairs, k], as k comparisons."""
    size = random.abs().mean(0)
    columns = [bootstrap_estimates(part, seed=seed) for part in (effects, size, effects - size)]
    return [AgainstRandom(effect=e, random=r, beyond=b) for e, r, b in zip(*columns, strict=True)]


def measure_exchanges(
    runs: list[SignalRuns], contrast: Contrast, layer: int, directions: dict[Direction, Tensor], seed: int
) -> list[Exchange]:
    """The exchange along each direction where the stream leaves `layer`."""
    measured = []
    drawn = random_directions(len(next(iter(directions.values()))), RANDOM, seed)
    for name, direction in directions.items():
        random = torch.stack([exchanged(runs, direction, along) for along in drawn])
        compared = _against(exchanged(runs, direction), random, seed)
        measured.append(
            Exchange(
                layer=layer,
                direction=name,
                auroc=auroc_estimate(*contrast.scores(layer, "last_prompt", direction)),
                gate_into_reference=compared[0],
                gate_into_harmful=compared[1],
                outcome_into_reference=compared[2],
                outcome_into_harmful=compared[3],
            )
        )
    return measured


def measure_paths(runs: list[SignalRuns], direction: Tensor, seed: int) -> tuple[Path, ...]:
    """What is left of the exchange with later attention, MLPs, or both frozen."""
    found = []
    for frozen in FROZEN:
        left = bootstrap_estimates(exchanged(runs, direction, frozen=frozen), seed=seed)
        found.append(
            Path(
                frozen=frozen,
                gate_into_reference=left[0],
                gate_into_harmful=left[1],
                outcome_into_reference=left[2],
                outcome_into_harmful=left[3],
            )
        )
    return tuple(found)


def early_layers(subject: Subject) -> range:
    """The layers before the first guarded one. NeuronGuardError where there is none."""
    early = range(min(edit.layer for edit in subject.edits))
    if not early:
        raise NeuronGuardError(
            "the gate is in the first layer, and nothing is before it: leave out the analysis harm_signal."
        )
    return early


def measure(subject: Subject, advance: Advance) -> HarmSignal:
    """Probes, the signal that the gate reads, its exchange by layer, its paths, and the early edit as a guard."""
    early, seed = early_layers(subject), subject.settings.seed
    calibration, validation, held_out = (
        Contrast(subject, split, early) for split in ("calibration", "validation", "held_out")
    )
    probes = fit_probes(calibration, early)
    readouts = tuple(
        Readout(layer=layer, tokens=group, auroc=auroc_estimate(*held_out.scores(layer, group, probe)))
        for (layer, group), probe in probes.items()
    )
    activity = gate_activity(subject.model, subject.edits)
    scale = gate_scale(subject, calibration.pairs, activity)
    read = what_the_gate_reads(signal_runs(subject, calibration.pairs, activity, scale, early[-1]))
    signal, there = first_there(validation, read, early)
    exchanges: list[Exchange] = []
    paths: tuple[Path, ...] = ()
    runs = signal_runs(subject, held_out.pairs, activity, scale, early[0])
    for layer in early:
        if layer > early[0]:
            runs = [run.advanced() for run in runs]
        directions: dict[Direction, Tensor] = {"probe": probes[layer, "last_prompt"], "read": read}
        exchanges += measure_exchanges(runs, held_out, layer, directions, seed)
        if layer == signal:
            paths = measure_paths(runs, read, seed)
        advance(1)
    side = SideBySide(subject)
    stretch = best_stretch(subject, signal, {"probe": probes[signal, "last_prompt"], "read": read})
    found = HarmSignal(
        readouts=readouts,
        reads_out=next((layer for layer in early if _tells(validation, layer, probes[layer, "last_prompt"])), None),
        layer=signal,
        there=there,
        direction=tuple(round(value, 6) for value in read.tolist()),
        exchanges=tuple(exchanges),
        paths=paths,
        without=side.without(),
        clamp=side.clamp(),
        disruption=None if stretch is None else side.disruption(stretch),
    )
    advance(1)
    return found


def total(subject: Subject) -> int:
    """The steps that `measure` tells of: a layer each, and the edits."""
    return len(early_layers(subject)) + 1

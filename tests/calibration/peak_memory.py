"""How far the memory of a process rises while the late layers of a model are kept.

`python -m tests.calibration.peak_memory LIMIT FOLDER` is run by `test_peak_memory.py`; it prints bytes as JSON: the
rise with the limit, the rise without one after it, what the activations of all late layers take, and those of one.
"""

import json
import sys
from pathlib import Path

from benchmarks.scaling.case import peak_bytes
from calibration.runs.shelf import Shelf
from calibration.search.gate import SplitBatches, prepare
from tests.calibration.late_models import random_batch
from tests.conftest import make_tiny_model

LAYERS, D_FF, BATCHES = 16, 4096, 36


def main() -> None:
    """Keep the late layers on a shelf with a limit, then on one without, and print what it took."""
    model = make_tiny_model(layers=LAYERS, d_ff=D_FF)
    few = SplitBatches(*((random_batch(seed),) for seed in (0, 1, 2)))
    prepare(model, few, few)
    batches = tuple(random_batch(0) for _ in range(BATCHES))
    split = SplitBatches(batches, few.reference, few.benign)
    before, rises, layers = peak_bytes(), [], 0
    for shelf in (Shelf(int(sys.argv[1]), Path(sys.argv[2])), Shelf()):
        layers = len(prepare(model, split, few, shelf).layers)
        rises.append(peak_bytes() - before)
    layer = sum(batch.input_ids.numel() for batch in batches) * D_FF * 4
    print(json.dumps([*rises, layer * layers, layer]))  # noqa: T201


if __name__ == "__main__":
    main()

"""How neurons are ranked for comparison."""

import torch

from benchmarks.localisation.ranking import contrast
from calibration.prompts.sequences import Batch, Example, collate
from calibration.runs.layer_calls import changed_input
from guard.families.architectures import architecture_of
from tests.conftest import TinyModel

PROMPTS = {"harmful": ((3, 4, 5), (6, 7)), "benign": ((8, 9, 10, 11), (12,), (13, 14))}


def batches(kind: str, size: int) -> list[Batch]:
    examples = [Example(prompt, (20, 21), (22,)) for prompt in PROMPTS[kind]]
    return [collate(examples[start : start + size], pad_id=0) for start in range(0, len(examples), size)]


def test_the_contrast_is_the_difference_of_means_at_the_last_prompt_token(tiny_model: TinyModel) -> None:
    model = tiny_model()
    layers, architecture = (1, 2), architecture_of(model)

    def mean(kind: str, index: int) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        layer = architecture.decoder_layers(model)[index]
        with changed_input(layer, architecture.down_projection(layer), seen.append), torch.inference_mode():
            for prompt in PROMPTS[kind]:
                model(input_ids=torch.tensor([prompt]))
        return torch.stack([h[0, -1] for h in seen]).double().mean(0)

    expected = torch.stack([(mean("harmful", index) - mean("benign", index)).abs() for index in layers])
    for size in (1, 2, 3):
        found = contrast(model, batches("harmful", size), batches("benign", size), layers)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)

"""Installing a spec: the model it belongs to, the verdict it has, and a model left as it was where anything fails."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from guard import EditSpec, install
from guard.errors import (
    ModelMismatchError,
    NeuronGuardError,
    RefutedSpecError,
    SelfTestError,
    SpecError,
    UnsupportedModelError,
)
from guard.hf import install_edits
from guard.runtime.wrappers import GuardedDownProjection
from guard.spec.edit_spec import (
    Estimate,
    Evidence,
    HeldOut,
    LayerEdit,
    OffOn,
    Provenance,
    Trigger,
    Verdict,
)
from guard.spec.fingerprint import fingerprint
from tests.conftest import TinyModel
from tests.guard.by_hand import EDITS, PROMPTS, greedy, guarded_by_hand, make_trigger

SOME = Estimate(value=0.5, low=0.4, high=0.6, n=10)
RATES = OffOn(off=SOME, on=SOME)


def spec_for(
    model: Any,
    *,
    layers: tuple[LayerEdit, ...] = EDITS,
    trigger: Trigger | None = None,
    refuted: bool = False,
) -> EditSpec:
    verdict = Verdict(
        outcome="refuted" if refuted else "effective",
        reasons=("harm does not fall",) if refuted else (),
        p_value=0.001,
        margin=0.5,
    )
    evidence = Evidence(
        contrasts=("topic",),
        outcome_harmful=SOME,
        outcome_reference=SOME,
        total_effect=SOME,
        mediators=(),
        neurons=(),
        set_sizes=(),
        trials=(),
        held_out=HeldOut(
            harmful_compliance=RATES,
            benign_refusal=RATES,
            harmful_garbled=RATES,
            benign_garbled=RATES,
            benign_kl=SOME,
            benign_first_token_kl=SOME,
            random_gates=(),
        ),
        verdict=verdict,
    )
    return EditSpec(
        schema_version=1,
        model=fingerprint(model, [edit.layer for edit in layers]),
        layers=layers,
        trigger=trigger,
        provenance=Provenance(versions={}, seed=0, data={}, arguments={}),
        evidence=evidence,
    )


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(PROMPTS).logits
    return logits


def refused(model: Any, spec: EditSpec, error: type[NeuronGuardError], match: str, **options: Any) -> None:
    """Installation raises `error` and leaves every module where it was."""
    modules, plain = dict(model.named_modules()), logits_of(model)
    with pytest.raises(error, match=match):
        install(model, spec, **options)
    after = dict(model.named_modules())
    assert list(after) == list(modules)
    assert all(after[name] is module for name, module in modules.items())
    assert torch.equal(logits_of(model), plain)


@pytest.mark.parametrize("trigger", [None, make_trigger(layer=0), make_trigger(layer=1)])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_a_spec_from_its_file_guards_generation(
    tiny_model: TinyModel, tmp_path: Path, model_type: str, trigger: Trigger | None
) -> None:
    model: Any = tiny_model(model_type, dtype=torch.float64)
    spec_for(model, trigger=trigger).save(tmp_path / "guard.safetensors")
    with guarded_by_hand(model, EDITS, trigger):
        expected = greedy(model, PROMPTS)
    plain = greedy(model, PROMPTS)
    with install(model, EditSpec.load(tmp_path / "guard.safetensors")):
        assert torch.equal(greedy(model, PROMPTS), expected)
    assert torch.equal(greedy(model, PROMPTS), plain)
    assert not torch.equal(plain, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("trigger", [None, make_trigger()])
def test_a_spec_installs_in_every_dtype(tiny_model: TinyModel, dtype: torch.dtype, trigger: Trigger | None) -> None:
    model = tiny_model(dtype=dtype)
    plain = logits_of(model)
    handle = install(model, spec_for(model, trigger=trigger))
    assert not torch.equal(logits_of(model), plain)
    handle.remove()
    assert torch.equal(logits_of(model), plain)


def test_a_compiled_model_is_verified_and_guarded(tiny_model: TinyModel) -> None:
    model = tiny_model(dtype=torch.float64)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    with guarded_by_hand(model, EDITS):
        expected = logits_of(model)
    with install(compiled, spec_for(model)):
        torch.testing.assert_close(logits_of(compiled), expected)


def test_the_self_test_leaves_the_guard_as_the_spec_says(tiny_model: TinyModel) -> None:
    model, trigger = tiny_model(dtype=torch.float64), make_trigger()
    with guarded_by_hand(model, EDITS, trigger):
        expected = logits_of(model)
    with install(model, spec_for(model, trigger=trigger)) as installation:
        torch.testing.assert_close(logits_of(model), expected, rtol=1e-12, atol=1e-12)
        assert [wrapper.edit.neurons.tolist() for wrapper in installation.guarded] == [list(e.neurons) for e in EDITS]


def test_installing_leaves_the_random_state_as_it_was(tiny_model: TinyModel) -> None:
    model = tiny_model()
    state = torch.get_rng_state()
    with install(model, spec_for(model)):
        assert torch.equal(torch.get_rng_state(), state)


def test_another_model_is_refused(tiny_model: TinyModel) -> None:
    refused(tiny_model(seed=1), spec_for(tiny_model(seed=0)), ModelMismatchError, "weights")
    refused(tiny_model("qwen2"), spec_for(tiny_model("llama")), ModelMismatchError, "model_type")
    refused(tiny_model(d_ff=38), spec_for(tiny_model(d_ff=37)), ModelMismatchError, "d_ff")


def test_a_refuted_spec_is_refused_unless_allowed_by_name(tiny_model: TinyModel) -> None:
    model = tiny_model()
    spec = spec_for(model, refuted=True)
    refused(model, spec, RefutedSpecError, r"harm does not fall.*allow_refuted")
    plain = logits_of(model)
    with install(model, spec, allow_refuted=True):
        assert not torch.equal(logits_of(model), plain)


def test_a_refuted_spec_without_an_edit_has_nothing_to_install(tiny_model: TinyModel) -> None:
    model = tiny_model()
    refused(model, spec_for(model, layers=(), refuted=True), SpecError, "no layer to edit", allow_refuted=True)


@pytest.mark.parametrize("trigger", [None, make_trigger()], ids=["always", "trigger"])
def test_a_failed_self_test_leaves_the_model_as_it_was(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, trigger: Trigger | None
) -> None:
    model = tiny_model()

    def skipping(wrapper: GuardedDownProjection, h: torch.Tensor) -> Any:
        return wrapper.original(h)

    monkeypatch.setattr(GuardedDownProjection, "forward", skipping)
    refused(model, spec_for(model, trigger=trigger), SelfTestError, "not reached")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_whatever_interrupts_the_self_test_leaves_the_model_as_it_was(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, error: Callable[[], BaseException]
) -> None:
    model = tiny_model()
    modules = list(model.modules())

    def interrupt(*_: Any) -> None:
        raise error()

    monkeypatch.setattr("guard.runtime.selftest.check", interrupt)
    with pytest.raises(error):  # type: ignore[call-overload]
        install(model, spec_for(model))
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))


def test_a_down_projection_without_tensors_is_refused_and_left_in_place(tiny_model: TinyModel) -> None:
    model = tiny_model()
    mlp = model.model.layers[1].mlp
    mlp.down_proj = nn.Identity()
    with pytest.raises(UnsupportedModelError, match="holds no tensor"):
        install_edits(model, EDITS)
    assert isinstance(mlp.down_proj, nn.Identity)

"""The worker that stock vLLM runs with `--worker-cls guard.vllm.worker.GuardedWorker`: guarded, or not at all.

A worker class, since that is the one seam which every way of starting vLLM passes, which has the loaded model before it
is profiled, compiled and captured, and whose errors stop the start: a plugin that fails is only logged. The rest is in
guard/vllm_*.py; this is the one file that imports vLLM.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.distributed.parallel_state import get_pp_group
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import get_model_cls
from vllm.platforms import current_platform
from vllm.tokenizers import cached_tokenizer_from_config

from guard.errors import EditNotAppliedError, NeuronGuardError, UnsupportedModelError
from guard.spec import fingerprint
from guard.spec.edit_spec import EditSpec
from guard.vllm import selftest as vllm_selftest
from guard.vllm.checkpoint import Checkpoint, check_loaded, skeleton, weights_of
from guard.vllm.exchange import check_fits, exchanged
from guard.vllm.families import MISSING_LAYER, layout_of
from guard.vllm.install import EngineGuard, Share, install
from guard.vllm.limits import check_settings
from guard.vllm.seeds import drawing_from_copies
from guard.vllm.settings import KEY, load_spec, settings_in

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker

PROBE_TOKENS = 4
UNCONFIRMED = "the spec is being exchanged."
FIXED_WEIGHTS = "the weights of a guarded model cannot be changed while it is served: start vLLM anew."


class GuardedWorker(PlatformWorker):  # type: ignore[misc]
    """vLLM's worker for this platform, its model guarded by the spec that `--additional-config` names."""

    guard: EngineGuard
    spec: EditSpec
    other: EditSpec | None = None
    """The spec that can take the place of `spec`: the next one or, once that is in, the one before."""
    share: Share
    refusal: str | None = "the guard is not installed."
    """Why no request is run; None once the self-test has passed."""

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        """Check that spec and model belong together, load the model, and install the edit.

        Raises a NeuronGuardError for anything that is not as the spec says.
        """
        if load_dummy_weights:
            raise UnsupportedModelError(FIXED_WEIGHTS)
        self.spec = load_spec(settings_in(self.vllm_config.additional_config))
        check_settings(self.vllm_config, self.spec)
        original = self._verified_checkpoint()
        super().load_model()
        self.share = Share(
            rank=get_tensor_model_parallel_rank(),
            size=get_tensor_model_parallel_world_size(),
            device=self.device,
            tokens=self.model_runner.max_num_tokens,
        )
        self._check_loaded(original)
        self.guard = install(self.get_model(), self.spec, self.share)
        if self.guard.layers and not get_pp_group().is_last_rank:
            raise UnsupportedModelError(
                "the guarded layers must be on the last pipeline rank, where the logits are: "
                "use fewer ranks, or set VLLM_PP_LAYER_PARTITION."
            )

    def compile_or_warm_up_model(self) -> Any:
        """Compile, capture, and prove that the guard is live in what came of it; SelfTestError if it is not."""
        self.refusal = None  # some runners warm up through execute_model
        times = super().compile_or_warm_up_model()
        self.guard_self_test()
        self.guard.count_from_here()
        return times

    def guard_self_test(self) -> dict[str, object]:
        """The self-test, as often as one likes: `collective_rpc("guard_self_test")`, between two passes of the engine.

        Returns what this rank holds. A failure raises, and no request is run after it.
        """
        try:
            passes = [partial(self._probe, uniform) for uniform in (False, True)] if self.guard.layers else []
            vllm_selftest.check(self.guard, self.share, self.model_config.dtype, passes)
        except NeuronGuardError as error:
            self.refusal = f"the self-test failed: {error}"
            raise
        return {
            "rank": self.rank,
            "layers": [layer.edit.layer for layer in self.guard.layers],
            "neurons": [layer.own.neurons.numel() for layer in self.guard.layers],
            "digest": self.spec.digest,
        }

    def guard_counts(self) -> dict[str, object]:
        """What the guard did on this rank since it began to serve: `collective_rpc("guard_counts")`."""
        return {"rank": self.rank, "counts": self.guard.counts()}

    def guard_prepare(self, settings: dict[str, object]) -> str | None:
        """Read the spec that `settings`, an entry as `--additional-config` has it, name; nothing that runs is changed.

        Returns why it cannot take over without a new start; None if it can. This and what follows return their errors,
        since vLLM stops listening to the other ranks at the first one that raises.
        """
        try:
            spec = load_spec(settings_in({KEY: settings}))
            check_fits(self.guard, self.spec, spec)
        except NeuronGuardError as error:
            return str(error)
        self.other = spec
        return None

    def guard_exchange(self, digest: str) -> str | None:
        """Put the numbers of the spec with this digest in place, if they are not there yet, and prove that they act.

        Between two passes, on all ranks at once. Returns what failed, or None; either way no request is run before
        `guard_admit`.
        """
        self.refusal = UNCONFIRMED
        if self.spec.digest != digest:
            if self.other is None or self.other.digest != digest:
                return f"rank {self.rank} has no spec {digest}."
            self.guard = exchanged(self.guard, self.other)
            self.spec, self.other = self.other, self.spec
        try:
            self.guard_self_test()
        except NeuronGuardError as error:
            return str(error)
        return None

    def guard_admit(self, digest: str, count_from_here: bool) -> str | None:
        """Run requests again, under the spec with this digest; why not, or None. For when all ranks have exchanged."""
        if self.refusal != UNCONFIRMED or self.spec.digest != digest:
            return f"rank {self.rank} has not proved spec {digest}."
        if count_from_here:
            self.guard.count_from_here()
        self.refusal = None
        return None

    def execute_model(self, scheduler_output: Any, *arguments: Any, **named: Any) -> Any:
        """One pass of the engine; EditNotAppliedError unless the guard was last seen to be live."""
        if self.refusal is not None:
            raise EditNotAppliedError(f"no request is run: {self.refusal}")
        # these tokens count, and in no other pass any; the device follows in its own time
        self.guard.length.tokens.fill_(scheduler_output.total_num_scheduled_tokens)
        try:
            return super().execute_model(scheduler_output, *arguments, **named)
        finally:
            self.guard.length.tokens.zero_()

    def sample_tokens(self, grammar_output: Any) -> Any:
        """The tokens of the pass; on a CPU without ending the engine where a seeded prompt is only begun."""
        # vLLM's second runner draws by seed and position, and has no generators
        if self.device.type != "cpu" or self.use_v2_model_runner:
            return super().sample_tokens(grammar_output)
        batch = self.model_runner.input_batch
        begun = self.model_runner.discard_request_mask.np[: batch.num_reqs].nonzero()[0]
        with drawing_from_copies(batch.generators, begun.tolist()):
            return super().sample_tokens(grammar_output)

    def reload_weights(self, *_: Any, **__: Any) -> None:
        """Refused: the spec belongs to the weights that were loaded."""
        raise UnsupportedModelError(FIXED_WEIGHTS)

    def update_weights(self, *_: Any, **__: Any) -> None:
        """Refused: the spec belongs to the weights that were loaded."""
        raise UnsupportedModelError(FIXED_WEIGHTS)

    def _verified_checkpoint(self) -> nn.Module:
        """What the checkpoint says of the guarded layers; ModelMismatchError unless the spec was made on it."""
        config = self.model_config
        loader = get_model_loader(self.load_config)
        if type(loader) is not DefaultModelLoader:
            raise UnsupportedModelError(f"the weights are read by a {type(loader).__name__}, which is not checked.")
        _, files, are_safetensors, _ = loader._prepare_weights(config.model, None, config.revision, True, None)
        if not are_safetensors:
            raise UnsupportedModelError("the checkpoint is not in safetensors format: convert it, then start vLLM.")
        model = skeleton(
            Checkpoint(files),
            config.hf_config,
            [edit.layer for edit in self.spec.layers],
            config.dtype,
            layout_of(get_model_cls(config)).transposed,
        )
        fingerprint.verify(self.spec, model, cached_tokenizer_from_config(config))
        return model

    def _check_loaded(self, original: nn.Module) -> None:
        model = self.get_model()
        layout = layout_of(type(model))
        layers = list(model.get_submodule(layout.layers).children())
        for index in (edit.layer for edit in self.spec.layers):
            if type(layers[index]).__name__ != MISSING_LAYER:
                weights = weights_of(original, index, layout.activation is not None, layout.transposed)
                check_loaded(layers[index], index, weights, layout, self.share)

    def _probe(self, uniform_decode: bool) -> Tensor:
        """Logits [tokens, V], or the last norm's output where this rank has no logits, of a pass on made-up tokens."""
        tokens = PROBE_TOKENS
        if uniform_decode:  # whole requests: each its token and its drafts
            drafts = 0 if self.speculative_config is None else self.speculative_config.num_speculative_tokens
            tokens = min(PROBE_TOKENS, self.scheduler_config.max_num_seqs) * (1 + drafts)
        # without attention, its output would be whatever is in memory
        hidden, _ = self.model_runner._dummy_run(
            tokens, force_attention=True, skip_eplb=True, uniform_decode=uniform_decode
        )
        with torch.inference_mode():
            logits = self.get_model().compute_logits(hidden)
        left: Tensor = hidden if logits is None else logits
        return left.clone()  # a captured graph writes to the same memory again

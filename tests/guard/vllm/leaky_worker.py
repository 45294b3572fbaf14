"""A worker as one must not write it: guarded, but by settings that vLLM's compile cache does not see."""

import json
import os

from guard.vllm.worker import GuardedWorker


class LeakyWorker(GuardedWorker):
    """Takes the guard's settings from the environment."""

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        self.vllm_config.additional_config = json.loads(os.environ["LEAKY_SETTINGS"])
        super().load_model(load_dummy_weights=load_dummy_weights)
        self.vllm_config.additional_config = {}

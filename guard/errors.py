"""Every error that neuron-guard raises on purpose: one sentence that names what is wrong and what to do."""


class NeuronGuardError(Exception):
    """The base of all of them."""


class SpecError(NeuronGuardError):
    """A spec that is malformed, inconsistent or cannot be read."""


class ModelMismatchError(NeuronGuardError):
    """A spec that was made on another model than the one at hand."""


class UnsupportedModelError(NeuronGuardError):
    """A model whose MLPs cannot be guarded, because its family is not known or has no such neurons."""


class RefutedSpecError(NeuronGuardError):
    """A spec whose verdict is `refuted`, asked to guard without being allowed by name."""


class EditNotAppliedError(NeuronGuardError):
    """An edit that is installed and would not act."""


class SelfTestError(NeuronGuardError):
    """The proof that an installed edit acts has failed."""


class FoldError(NeuronGuardError):
    """An edit that weights cannot express, or a folded model that cannot be written."""


class ModelLoadError(NeuronGuardError):
    """A model, tokenizer or device that cannot be had."""

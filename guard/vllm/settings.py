"""What a vLLM worker is told about its guard, on its way through `--additional-config`.

vLLM hashes that dictionary into the key of its compile cache, so that a graph compiled without the guard, or with
another spec or version, is never loaded for this one. The digest is compared with the spec that is read, so that a file
changed after the server was set up does not pass.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from os import PathLike
from pathlib import Path

from pydantic import ValidationError

from guard.errors import NeuronGuardError, SpecError
from guard.spec.edit import Digest
from guard.spec.edit_spec import EditSpec
from guard.spec.measures import Frozen
from guard.spec.permission import require_servable

KEY = "neuron_guard"


class GuardSettings(Frozen):
    """The entry under `neuron_guard`: a spec's file, its `EditSpec.digest`, and the version that wrote this down."""

    spec: str
    digest: Digest
    version: str
    allow_refuted: bool = False


def version() -> str:
    """The installed version of neuron-guard; SpecError where it is not installed as a package."""
    try:
        return metadata.version("neuron-guard")
    except metadata.PackageNotFoundError as error:
        raise SpecError("neuron-guard is not installed as a package: pip install it, then start vLLM.") from error


def additional_config(spec: str | PathLike[str], *, allow_refuted: bool = False) -> dict[str, dict[str, object]]:
    """What to pass to vLLM as `additional_config`, or as JSON after `--additional-config`, to serve the spec at `spec`.

    SpecError if that is no valid spec; RefutedSpecError if it failed its held-out test, unless `allow_refuted`.
    """
    path = str(Path(spec).resolve())  # workers may run in another folder
    settings = GuardSettings(
        spec=path, digest=EditSpec.load(path).digest, version=version(), allow_refuted=allow_refuted
    )
    load_spec(settings)
    return {KEY: settings.model_dump()}


def settings_in(config: object) -> GuardSettings:
    """The guard's entry in vLLM's `additional_config`; SpecError if it is not there, malformed or another version's."""
    entry = config.get(KEY) if isinstance(config, Mapping) else None
    if entry is None:
        raise SpecError(
            "vLLM was started with the guard's worker but without a spec: pass --additional-config with an entry "
            f"{KEY!r}, as guard.vllm.settings.additional_config makes it."
        )
    try:
        settings = GuardSettings.model_validate(entry, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, (KEY, *first["loc"])))
        raise SpecError(f"in vLLM's additional configuration, {place}: {first['msg']}.") from error
    if settings.version != version():
        raise SpecError(
            f"vLLM was set up by neuron-guard {settings.version}, but {version()} is installed: "
            "make the additional configuration anew."
        )
    return settings


def load_spec(settings: GuardSettings) -> EditSpec:
    """The spec that `settings` name.

    SpecError if its digest is another one, or it edits nothing; RefutedSpecError if it failed its held-out test and is
    not allowed by name.
    """
    spec = EditSpec.load(settings.spec)
    if spec.digest != settings.digest:
        raise SpecError(
            f"the spec at {settings.spec} has digest {spec.digest}, not {settings.digest}: "
            "it was changed since vLLM was set up."
        )
    require_servable(spec, allow_refuted=settings.allow_refuted, remedy="set allow_refuted to serve it")
    if not spec.layers:
        raise SpecError("there is no layer to edit: nothing can be installed.")
    return spec


def main(arguments: Sequence[str]) -> str:
    """The JSON for `--additional-config`: `python -m guard.vllm.settings SPEC [--allow-refuted]`.

    Exits with one line where there is nothing to serve.
    """
    specs = [argument for argument in arguments if argument != "--allow-refuted"]
    if len(specs) != 1 or specs[0].startswith("-"):
        sys.exit("usage: python -m guard.vllm.settings SPEC [--allow-refuted]")
    try:
        return json.dumps(additional_config(specs[0], allow_refuted="--allow-refuted" in arguments))
    except NeuronGuardError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]) + "\n")

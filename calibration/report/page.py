"""What the pages that calibration writes have in common: one template environment, and a file written whole or not.

A page stands alone: styles, scripts and data are inside it, and whatever comes from outside is escaped.
"""

import os
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from calibration.report import display
from guard.errors import NeuronGuardError
from guard.spec import atomic_files as files

TEMPLATES = Path(__file__).parent / "templates"


@cache
def template(name: str, *folders: Path) -> Template:
    """A template of `folders` or of this package, whose parts it may use, escaping all that is put into it, with the
    writers of `display` as filters.
    """
    environment = Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "allow_nan": False}
    for write in (
        display.number, display.percent, display.points, display.setting, display.probability, display.plural,
        display.listed, display.sentence, display.edit_in_words, display.token,
        display.chance,
    ):  # fmt: skip
        environment.filters[write.__name__] = write
    return environment.get_template(name)


def write_page(path: str | os.PathLike[str], text: str, kind: str, error: type[NeuronGuardError]) -> None:
    """Write a page to `path`, whole or not at all; `error` says so where it cannot be, naming what `kind` of page."""
    target = Path(path)
    try:
        files.write(target, text.encode())
    except OSError as problem:
        raise error(
            f"the {kind} cannot be written to {target} ({problem.strerror}): name a file in a folder that exists and "
            "can be written to."
        ) from problem

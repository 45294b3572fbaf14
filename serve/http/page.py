"""The page for a person at GET /guard/ui: a shell without any secret, whose script asks for the rest with the API key.

A browser sends no Authorization header by itself, and would send a cookie for the pages of others too; so the key is
typed in, kept in the tab's session storage and put into that header by the script. Nothing is loaded from elsewhere:
style and script are part of the page, and its policy names their digests, so that nothing else runs.
"""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from guard.spec.edit_spec import EditSpec

TEMPLATES = Path(__file__).parent / "templates"


@cache
def page(locked: bool) -> tuple[str, dict[str, str]]:
    """The page as HTML text, and the headers that belong to it; one that is not `locked` does not ask for a key."""
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    text = environment.get_template("page.html.jinja").render(
        style=Markup(style),  # noqa: S704 (our own files)
        script=Markup(script),  # noqa: S704
        locked=locked,
    )
    policy = (
        f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return text, headers


def evidence_of(spec: EditSpec, name: str) -> dict[str, Any]:
    """What the page tells of a spec and does not change while it serves, as a JSON document."""
    trigger = spec.trigger
    return {
        "model": name,
        "spec_digest": spec.digest,
        "identity": spec.model.model_dump(mode="json"),
        "layers": [{"layer": edit.layer, "neurons": len(edit.neurons)} for edit in spec.layers],
        "trigger": None if trigger is None else trigger.model_dump(mode="json", exclude={"direction"}),
        "verdict": spec.evidence.verdict.model_dump(mode="json"),
        "held_out": spec.evidence.held_out.model_dump(mode="json"),
    }


def _source(text: str) -> str:
    """How a content security policy names an inline element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

"""The page's shell tells nothing, runs nothing but its own script, and gets the rest behind the API key."""

import base64
import hashlib
import re
from collections.abc import Iterator

import pytest

from serve.http.page import TEMPLATES, evidence_of, page
from tests.guard.specs import small_spec
from tests.serve.served import Asked, engine_of, organism_spec

KEY = {"Authorization": "Bearer sesame"}


@pytest.fixture(scope="module")
def locked() -> Iterator[Asked]:
    with engine_of(organism_spec()) as engine:
        yield Asked(engine, api_key="sesame")


def test_the_shell_is_open_and_says_nothing_of_what_serves(locked: Asked) -> None:
    response = locked.get("/guard/ui")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    for secret in ("sesame", "organism", locked.engine.status.digest, locked.engine.status.digest[:16], "effective"):
        assert secret not in re.sub(r"<script>.*</script>", "", response.text, flags=re.DOTALL)


def test_what_the_page_shows_is_behind_the_key(locked: Asked) -> None:
    for path in ("/guard", "/guard/evidence", "/guard/ui/", "/guard/ui/x"):
        assert locked.get(path).status_code == 401
    assert locked.get("/guard/evidence", headers=KEY).json()["spec_digest"] == locked.engine.status.digest


def test_the_policy_allows_the_page_s_own_script_and_style_alone() -> None:
    text, headers = page(locked=True)
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for element, directive in (("script", "script-src"), ("style", "style-src")):
        (inline,) = re.findall(rf"<{element}>(.*?)</{element}>", text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    assert not re.search(r"\son\w+=|\sstyle=", text), "the policy would not run it"


def test_the_page_names_no_other_place() -> None:
    for source in (page(locked=True)[0], *(file.read_text() for file in TEMPLATES.iterdir())):
        addresses = set(re.findall(r"(?:https?:)?//[\w.]+[^\s\"'`;)]*", source))
        assert {address for address in addresses if address.startswith("http")} <= {"http://www.w3.org/2000/svg"}


def test_a_server_without_a_key_has_a_page_that_asks_for_none() -> None:
    assert "data-locked" in page(locked=True)[0]
    assert "data-locked" not in page(locked=False)[0]


def test_the_evidence_is_the_spec_s_without_its_tensors() -> None:
    spec = small_spec()
    told = evidence_of(spec, "model")
    assert told["layers"] == [{"layer": 2, "neurons": 2}, {"layer": 3, "neurons": 1}]
    assert told["trigger"]["false_trigger_rate"] == 0.01
    assert "direction" not in told["trigger"]
    assert told["held_out"]["harmful_compliance"]["off"]["value"] == 0.975
    assert evidence_of(small_spec(trigger=None), "model")["trigger"] is None

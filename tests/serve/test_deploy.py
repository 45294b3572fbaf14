"""The files that an operator starts a server with say what this version of it understands, and let nobody else in."""

import re
import shlex
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from typer.testing import CliRunner

from neuron_guard import app
from serve.settings import Settings
from tests.serve.test_grafana import names_in
from tests.serve.test_metrics import Samples

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "serve" / "deploy"
UNIT, DOCKERFILE = DEPLOY / "neuron-guard.service", DEPLOY / "Dockerfile"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text()).replace("\\\n", " ")
    lines = [line.partition(" ") for line in text.splitlines() if line]
    return [(name, " ".join(rest.split())) for name, _, rest in lines]


def of(name: str) -> list[str]:
    """The arguments of every instruction called `name`."""
    return [rest for known, rest in instructions() if known == name]


def unit_command() -> list[str]:
    unit = ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(UNIT.read_text())
    return shlex.split(unit["Service"]["ExecStart"])[1:]


def image_command() -> list[str]:
    words: list[str] = yaml.safe_load(of("CMD")[-1])
    return words


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings of servers that were started; none of them runs."""
    servers: list[Settings] = []
    monkeypatch.setattr("serve.start.serve", servers.append)
    return servers


@pytest.mark.parametrize("command", [unit_command(), image_command()], ids=["systemd", "Docker"])
def test_the_command_is_one_that_this_version_understands(command: list[str], started: list[Settings]) -> None:
    outcome = CliRunner().invoke(app, command)
    assert (outcome.exit_code, len(started)) == (0, 1), outcome.output
    assert not started[0].allow_refuted
    assert not started[0].completions


def test_a_service_takes_signed_specs_alone_and_does_not_try_a_refused_one_again(started: list[Settings]) -> None:
    CliRunner().invoke(app, unit_command())
    assert started[0].require_signature is not None
    assert "\nRestartPreventExitStatus=2\n" in UNIT.read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/neuron-guard/bin/neuron-guard", "/bin/true"))
    told = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, check=False)
    assert (told.returncode, UNIT.name in told.stderr) == (0, False), told.stderr


def test_the_image_is_pinned_and_made_of_what_the_repository_has() -> None:
    known = {
        "FROM",
        "RUN",
        "ARG",
        "WORKDIR",
        "COPY",
        "USER",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    }
    assert {name for name, _ in instructions()} <= known
    assert re.fullmatch(r"python:3\.11-\S+", of("FROM")[0])
    sources = [source for copied in of("COPY") for source in copied.split()[:-1]]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    packages = re.findall(r'"(\w+)\*"', (ROOT / "pyproject.toml").read_text())
    assert {"pyproject.toml", "README.md", "LICENSE", "neuron_guard.py", *packages} == set(sources)
    assert f"TORCH={re.search('^TORCH [?]= (.+)$', (ROOT / 'Makefile').read_text(), re.M)[1]}" in of("ARG")  # type: ignore[index]


def test_the_image_does_not_run_as_root_and_asks_the_guard_for_its_health() -> None:
    names = [name for name, _ in instructions()]
    assert of("USER") == ["guard"]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert "/health" in of("HEALTHCHECK")[0]
    assert f":{of('EXPOSE')[0]}/health" in of("HEALTHCHECK")[0]


def test_what_compose_mounts_and_builds_is_there() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service["volumes"] if mount.startswith(".")]
    assert mounts
    assert [mount for mount in mounts if not (DEPLOY / mount.split(":")[0]).is_file()] == []
    build = SERVICES["model"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DOCKERFILE


def test_compose_listens_on_this_machine_alone_and_knows_no_secret() -> None:
    for name, service in SERVICES.items():
        assert [port for port in service["ports"] if not port.startswith("127.0.0.1:")] == [], name
        assert service["cap_drop"] == ["ALL"], name
        for value in service.get("environment", {}).values():
            assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), f"{name}: a value that is not asked for"


def test_compose_pins_its_images() -> None:
    images = [service["image"] for service in SERVICES.values() if "image" in service]
    assert images
    assert [image for image in images if not re.search(r":v?\d+\.\d+\.\d+$", image)] == []


def test_prometheus_asks_the_server_with_the_key() -> None:
    scraped = read("prometheus.yaml")["scrape_configs"][0]
    (target,) = scraped["static_configs"][0]["targets"]
    service, port = target.split(":")
    assert SERVICES[service]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert port == of("EXPOSE")[0]
    secret = Path(scraped["authorization"]["credentials_file"])
    assert secret.parent == Path("/run/secrets")
    assert SERVICES["prometheus"]["secrets"] == [secret.name]
    assert COMPOSE["secrets"][secret.name]["environment"] in SERVICES["model"]["environment"]


def test_alerts_ask_for_metrics_that_are_exported(exported: Samples) -> None:
    rules = [rule for group in read("alerts.yaml")["groups"] for rule in group["rules"]]
    asked = {name for rule in rules for name in names_in(rule["expr"])}
    assert {"guard_in_force", "guard_drift"} <= asked <= {name for name, _ in exported}
    (rule_file,) = read("prometheus.yaml")["rule_files"]
    assert f"./alerts.yaml:{rule_file}:ro" in SERVICES["prometheus"]["volumes"]


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    (source,) = read("grafana_source.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert SERVICES["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]
    (provider,) = read("grafana_dashboards.yaml")["providers"]
    assert f"../grafana.json:{provider['options']['path']}/neuron-guard.json:ro" in SERVICES["grafana"]["volumes"]

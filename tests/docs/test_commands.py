"""What the README and the pages in docs/ tell a reader to type exists: commands, options, code, files, links.

What needs nothing but a spec is run. What needs a model, a network or a GPU is parsed against the real command line.
"""

import ast
import importlib
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from neuron_guard import app
from serve.http import routes_chat, routes_guard, routes_operations
from tests.calibration.example_spec import example_spec
from tests.docs.markdown import DOCS, LINKING, PAGES, ROOT, Command, anchors, commands, inline, links, pythons

LONGEST_README = 150
SUBJECTS = ("calibrate", "serve", "vllm", "spec-format", "benchmarks", "families", "security")
PROGRAM = "neuron-guard"
SPEC = "guard.safetensors"
# Sub-commands that need no model: run as written, in an empty folder that holds the spec, in the order of the page.
RUN = ("inspect", "keygen", "sign", "verify")
FOLDERS_OF_A_READER = ("DATA", "XSTEST")
ABOUT_VLLM = "vllm.md"
USAGE_ERROR: Any = typer.BadParameter.__base__  # typer has a click of its own in some versions
ROOT_COMMAND: Any = typer.main.get_command(app)

EVERY_COMMAND = [command for page in PAGES for command in commands(page)]
OURS = [command for command in EVERY_COMMAND if Path(command.words[0]).name == PROGRAM]


def resolved(words: tuple[str, ...]) -> tuple[Any, list[str]]:
    """The sub-command that the words name, and the words that are left; AssertionError if there is none."""
    command, rest = ROOT_COMMAND, list(words)
    while hasattr(command, "commands"):
        assert rest and rest[0] in command.commands, f"{shlex.join(words)} names no sub-command"
        command = command.commands[rest.pop(0)]
    return command, rest


def check_ours(words: tuple[str, ...]) -> None:
    """AssertionError or UsageError unless `neuron-guard WORDS` is a whole command: parsed in full, and not executed."""
    command, rest = resolved(words)
    command.make_context(PROGRAM, rest)


def check_make(words: tuple[str, ...]) -> None:
    """AssertionError unless the Makefile has the target and the variables."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, is_variable, _ = word.partition("=")
        rule = rf"^{name} \?=" if is_variable else rf"^({name}|{name.partition('-')[0]}-%): "
        assert re.search(rule, makefile, re.MULTILINE), f"make {word}"


def check_curl(words: tuple[str, ...]) -> None:
    """AssertionError unless the server has a route of the path."""
    sources = (Path(str(each.__file__)) for each in (routes_chat, routes_guard, routes_operations))
    routes = {path for source in sources for path in re.findall(r'router\.\w+\("([^"]+)"', source.read_text("utf-8"))}
    (url,) = (word for word in words if "://" in word)
    assert url.removeprefix("http://127.0.0.1:8000") in routes, url


def check_pip(words: tuple[str, ...]) -> None:
    """AssertionError unless pyproject.toml has the extras."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    asked = [extra for word in words for extra in re.findall(r"\[(.+)\]", word)]
    assert words[0] == "install" and set(asked) <= set(extras), asked


def check_python(words: tuple[str, ...]) -> None:
    """AssertionError unless the module and the files exist."""
    assert words[0] == "-m" and importlib.util.find_spec(words[1]), words
    assert all(list(ROOT.glob(word)) for word in words[2:]), words


def check_docker(words: tuple[str, ...]) -> None:
    """AssertionError unless the file exists that is built from."""
    assert words[0] == "build" and (ROOT / words[words.index("-f") + 1]).exists(), words


CHECKS: dict[str, Callable[[tuple[str, ...]], None]] = {
    PROGRAM: check_ours,
    "make": check_make,
    "curl": check_curl,
    "pip": check_pip,
    "python": check_python,
    "docker": check_docker,
}


def check(command: Command) -> None:
    """AssertionError or UsageError, unless the command can be typed; a program without a check is an error."""
    program = Path(command.words[0]).name
    assert program in CHECKS, f"nothing checks {program}"
    CHECKS[program](command.words[1:])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a spec in it and the folders that a reader has."""
    monkeypatch.chdir(tmp_path)
    example_spec().save(tmp_path / SPEC)
    for name in FOLDERS_OF_A_READER:
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize("command", EVERY_COMMAND, ids=str)
def test_a_command_on_a_page_exists_as_it_stands_there(command: Command) -> None:
    check(command)


@pytest.mark.parametrize(
    "typed",
    [
        "neuron-guard calibrat MODEL",
        "neuron-guard bench",
        "neuron-guard calibrate MODEL --harmful a",
        "neuron-guard calibrate MODEL --harmful a --benign b --no-such-option",
        "neuron-guard calibrate MODEL --harmful a --benign b --trigger maybe",
        "neuron-guard inspect guard.safetensors one-too-many",
        "make no-such-target",
        "make demo NO_SUCH_VARIABLE=",
        "curl http://127.0.0.1:8000/no/such/route",
        "pip install '.[no-such-extra]'",
        "python -m calibration.no_such_module",
        "docker build -f no/such/Dockerfile .",
        "rm -r build",
    ],
)
def test_a_command_that_does_not_exist_is_found(typed: str) -> None:
    with pytest.raises((AssertionError, USAGE_ERROR)):
        check(Command("page", tuple(shlex.split(typed))))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_needs_no_model_runs_as_the_page_has_it(page: Path) -> None:
    for command in commands(page):
        needs_model = "--model" in command.words
        if command in OURS and command.words[1] in RUN and not needs_model:
            outcome = CliRunner().invoke(app, list(command.words[1:]))
            assert outcome.exit_code == 0, f"{command}: {outcome.output}"


def test_a_page_has_each_command_that_is_run() -> None:
    assert {command.words[1] for command in OURS} >= set(RUN)


def page_of(value: object) -> str:
    """A page's name, for the name of a test; code has none."""
    return value.stem if isinstance(value, Path) else "code"


@pytest.mark.parametrize(("page", "code"), [(page, code) for page in PAGES for code in pythons(page)], ids=page_of)
def test_python_on_a_page_compiles_and_imports_what_there_is(page: Path, code: str) -> None:
    tree = ast.parse(code, page.name)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        module = importlib.import_module(str(node.module))
        assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
    if SPEC in code and page.name == "spec-format.md":
        exec(compile(tree, page.name, "exec"), {})  # noqa: S102


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != ABOUT_VLLM], ids=lambda page: page.stem)
def test_an_option_that_a_page_names_belongs_to_a_command(page: Path) -> None:
    named = {option for code in inline(page) for option in re.findall(r"(?<!\S)--[a-z][\w-]*", code)}
    assert named <= every_option(ROOT_COMMAND)


def every_option(command: Any) -> set[str]:
    """The options of a command and of all below it."""
    found = {"--help"} | {option for parameter in command.params for option in parameter.opts}
    return found.union(*map(every_option, getattr(command, "commands", {}).values()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_command_named_in_the_text_exists(page: Path) -> None:
    spans = [tuple(code.split()) for code in inline(page)]
    for words in (each for each in spans if len(each) > 1):
        if words[0] == "make":
            check_make(words[1:])
        elif words[0] in (PROGRAM, "bench"):
            command, rest = resolved(words[words[0] == PROGRAM :])
            assert {word for word in rest if word.startswith("--")} <= every_option(command), words


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_each_subject_has_its_page_and_the_readme_links_to_all_of_them() -> None:
    assert {page.stem for page in DOCS} == set(SUBJECTS)
    assert {f"docs/{subject}.md" for subject in SUBJECTS} <= set(links(ROOT / "README.md"))


def test_every_sub_command_is_on_a_page() -> None:
    shown = {command.words[1:3] if command.words[1] == "bench" else command.words[1:2] for command in OURS}
    there = {(name,) for name in ROOT_COMMAND.commands if name != "bench"}
    assert shown == there | {("bench", name) for name in ROOT_COMMAND.commands["bench"].commands}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_README

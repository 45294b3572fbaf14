"""The shape of the repository: who may import whom, what must be documented."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("guard", "calibration", "serve", "benchmarks")

# What each package may import of this project. Nothing imports benchmarks except itself and the command.
MAY_IMPORT = {
    "guard": {"guard"},
    "calibration": {"guard", "calibration"},
    "serve": {"guard", "serve"},
    "benchmarks": {"guard", "calibration", "serve", "benchmarks"},
    "neuron_guard": {"guard", "calibration", "serve", "benchmarks"},
}
GUARD_MAY_IMPORT = {"torch", "safetensors", "pydantic"}
ONLY_IN = {
    "vllm": {"guard/vllm/worker.py", "benchmarks/serving/vllm.py"},  # where it serves, and where that is timed
    "triton": {"guard/ops/triton_kernel.py"},
    "liger_kernel": {"benchmarks/op/peers.py"},  # compared with where it is installed
    "bitsandbytes": {"benchmarks/robustness/attacks/quantisation.py"},  # rounds weights where it is installed
    "lm_eval": {"benchmarks/tasks/harness.py"},
    "aiohttp": {"benchmarks/tasks/harness.py"},  # what lm-eval asks an endpoint with
    "nltk": {"benchmarks/tasks/harness.py"},  # what one of its tasks needs
    "inspect_ai": {"benchmarks/safety/inspect_refusal.py"},
    "matplotlib": {"benchmarks/safety/curve/picture.py"},
}
TYPES_ONLY = {"guard/hf.py": {"transformers"}}
# Loads the models of commands that have none yet; what guards a model that is there does not import it.
LOADS_MODELS = {"guard/loading.py": {"transformers"}}
# Names of options, which the command reads before it can afford torch.
IMPORTED_AT_START = {"guard.load_options"}
# The name to import, where it is not the name to install.
DISTRIBUTION = {"sklearn": "scikit-learn", "PIL": "pillow", "prometheus_client": "prometheus-client"}


def source_files() -> list[Path]:
    """Every Python file of the packages and the command, tests left out."""
    inside = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [*inside, *([ROOT / "neuron_guard.py"] if (ROOT / "neuron_guard.py").exists() else [])]


def every_file() -> list[Path]:
    return [*source_files(), *sorted((ROOT / "tests").rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def is_type_checking(node: ast.AST) -> bool:
    if not isinstance(node, ast.If):
        return False
    test = node.test
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def import_nodes(node: ast.AST, types_only: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import below `node`, functions included, and whether only type checkers see it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, types_only
        elif is_type_checking(child):
            assert isinstance(child, ast.If)
            for statement in child.body:
                yield from import_nodes(ast.Module([statement], []), True)
            for statement in child.orelse:
                yield from import_nodes(ast.Module([statement], []), types_only)
        else:
            yield from import_nodes(child, types_only)


def base_of(node: ast.ImportFrom, path: Path) -> str:
    """The module that `from ... import` names, relative ones resolved."""
    if not node.level:
        return node.module or ""
    package = module_of(path).split(".")[: None if path.name == "__init__.py" else -1]
    return ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])


def imported(path: Path, *, types: bool = True) -> set[str]:
    """Full dotted names that a file imports; `from a import b` gives a.b."""
    names: set[str] = set()
    for node, types_only in import_nodes(tree_of(path)):
        if types_only and not types:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        else:
            names.update(f"{base_of(node, path)}.{alias.name}" for alias in node.names)
    return names


def offending(found: dict[str, set[str]]) -> dict[str, set[str]]:
    """What was found, by file, without the files in which nothing was."""
    return {name: each for name, each in found.items() if each}


def tops(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_packages_import_each_other_only_in_the_designed_direction() -> None:
    found: dict[str, set[str]] = {}
    for path in source_files():
        owner = module_of(path).split(".")[0]
        allowed = MAY_IMPORT[owner] | ({"neuron_guard"} if owner == "neuron_guard" else set())
        found[name_of(path)] = tops(imported(path)) & set(MAY_IMPORT) - allowed
    assert offending(found) == {}


def test_what_runs_in_a_serving_process_imports_little() -> None:
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "guard").rglob("*.py")):
        allowed = GUARD_MAY_IMPORT | {"guard"} | sys.stdlib_module_names
        allowed |= {name for name, homes in ONLY_IN.items() if name_of(path) in homes}
        allowed |= LOADS_MODELS.get(name_of(path), set())
        seen_by_types = tops(imported(path)) - allowed - TYPES_ONLY.get(name_of(path), set())
        found[name_of(path)] = tops(imported(path, types=False)) - allowed | seen_by_types
    assert offending(found) == {}


def test_an_optional_import_stays_in_the_file_named_for_it() -> None:
    elsewhere = {
        name_of(path): {name for name, homes in ONLY_IN.items() if name_of(path) not in homes}
        for path in source_files()
    }
    found = {name_of(path): tops(imported(path)) & elsewhere[name_of(path)] for path in source_files()}
    assert offending(found) == {}


def test_the_command_imports_the_project_only_inside_functions() -> None:
    path = ROOT / "neuron_guard.py"
    at_start: set[str] = set()
    for node in tree_of(path).body:
        if isinstance(node, ast.Import):
            at_start.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            at_start.add(module if module in IMPORTED_AT_START else module.split(".")[0])
    assert at_start - IMPORTED_AT_START <= sys.stdlib_module_names | {"typer", "rich"}


def test_no_module_imports_itself_through_others() -> None:
    paths = {module_of(path): path for path in source_files()}
    edges = {
        module: {name if name in paths else name.rpartition(".")[0] for name in imported(path)} & set(paths)
        for module, path in paths.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module in done:
            return
        for name in sorted(edges[module]):
            visit(name, (*trail, module))
        done.add(module)

    for module in sorted(edges):
        visit(module, ())


def undocumented_in(tree: ast.Module) -> set[str]:
    """The public names of a module without a docstring."""
    undocumented = set() if ast.get_docstring(tree) or not tree.body else {"the module"}

    def look(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_") or any(ast.unparse(d).endswith("overload") for d in node.decorator_list):
                continue
            if not ast.get_docstring(node):
                undocumented.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                look(node.body, f"{prefix}{node.name}.")

    look(tree.body, "")
    return undocumented


def test_every_public_name_says_what_it_is() -> None:
    assert offending({name_of(path): undocumented_in(tree_of(path)) for path in source_files()}) == {}


def test_every_import_is_declared_and_every_dependency_is_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {distribution(requirement) for requirement in project["dependencies"]}
    used = {DISTRIBUTION.get(top, top) for path in source_files() for top in tops(imported(path))}
    used -= sys.stdlib_module_names | set(MAY_IMPORT) | set(ONLY_IN) | {""}
    assert used <= declared, "imported, not declared"
    assert declared <= used, "declared, not imported"


def distribution(requirement: str) -> str:
    return requirement.split(">")[0].split("=")[0].split("[")[0].strip()


def test_no_caught_exception_is_wider_than_its_reason() -> None:
    wide = {"Exception", "BaseException"}
    found: dict[str, set[str]] = {}
    for path in every_file():
        handlers = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ExceptHandler)]
        caught = {
            node.lineno: {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)} if node.type else wide
            for node in handlers
        }
        found[name_of(path)] = {f"line {line}" for line, names in caught.items() if names & wide}
    assert offending(found) == {}

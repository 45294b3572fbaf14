"""A family is one entry of the table: no other code says a model type, to compare with it or to look something up."""

import ast
from collections.abc import Iterator

from guard.families.table import FAMILIES
from tests.test_layout import ROOT, name_of, offending, source_files, tree_of

TABLE = ROOT / "guard" / "families" / "table.py"


def named_in(tree: ast.Module) -> Iterator[str]:
    """The model types that a comparison, a `match` or a dictionary's keys name, and those of sets."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, comparators=others):
                parts = [left, *others]
            case ast.Dict(keys=keys):
                parts = [key for key in keys if key is not None]
            case ast.MatchValue(value=value):
                parts = [value]
            case ast.Set(elts=members):
                parts = members
            case _:
                continue
        for part in parts:
            inside = part.elts if isinstance(part, ast.Tuple | ast.List | ast.Set) else [part]
            yield from (each.value for each in inside if isinstance(each, ast.Constant) and each.value in FAMILIES)


def test_no_code_outside_the_table_knows_a_family_by_its_name() -> None:
    assert offending({name_of(path): set(named_in(tree_of(path))) for path in source_files() if path != TABLE}) == {}


def test_naming_a_family_in_code_is_found() -> None:
    code = 'if kind == "opt" or kind in ("llama", "x"): a = {"phi": 1}; b = {"gemma"}'
    assert set(named_in(ast.parse(code))) == {"opt", "llama", "phi", "gemma"}

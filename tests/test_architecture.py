"""Imports run one way, from what a user calls down to what everything stands on, lazy imports and type hints included."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "scalekit"
ORDER = [
    "errors",
    "utils",
    "distributed hardware models",
    "objectives config optim",
    "data planning checkpoint",
    "strategies loggers exporting",
    "callbacks loops",
    "training",
    "api",
    "cli",
]
"""A folder, or a file at the top, may import from itself and from what stands above it here."""
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names.split()}
INSIDE = {
    "data": ["encoders diagnostics sampling", "sources", "packing", "loading"],
    "planning": ["profiling", "memory", "timing"],
}
"""The same for the folders of a folder; its own files stand below them."""


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "scalekit":
            module = (node.module or "").removeprefix("scalekit").strip(".")
            yield from (
                f"{module}.{each.name}".strip(".") for each in node.names if module or each.name != "__version__"
            )


FILES = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in LEVEL]


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(file: Path) -> None:
    own = list(file.relative_to(PACKAGE).with_suffix("").parts)
    for module in imported(file):
        other = module.split(".")
        if own[0] != other[0]:
            assert other[0] in LEVEL, module
            assert LEVEL[other[0]] < LEVEL[own[0]], f"{'/'.join(own)} imports {module}"
        elif own[0] in INSIDE and own[1] != other[1]:
            order = {name: level for level, names in enumerate(INSIDE[own[0]]) for name in names.split()}
            assert order.get(other[1], len(order)) < order.get(own[1], len(order) + 1), f"{own} imports {module}"


def loaded_with(file: Path) -> set[str]:
    """The modules that a file's own top level imports."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scalekit."):
            module = (node.module or "").removeprefix("scalekit.")
            is_folder = (PACKAGE / module.replace(".", "/")).is_dir()
            found |= {f"{module}.{each.name}" for each in node.names} if is_folder else {module}
    return found


def test_no_module_needs_itself() -> None:
    needs = {".".join(file.relative_to(PACKAGE).with_suffix("").parts): loaded_with(file) for file in FILES}
    while leaves := [name for name, needed in needs.items() if not needed & needs.keys()]:
        for name in leaves:
            del needs[name]
    assert not needs


def test_every_folder_has_its_place() -> None:
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()} <= LEVEL.keys()


TABLES = {"config/settings.py"}
MOST_LINES = 300


@pytest.mark.parametrize("file", list(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_can_be_read_at_once(file: Path) -> None:
    assert str(file.relative_to(PACKAGE)) in TABLES or len(file.read_text().splitlines()) <= MOST_LINES

"""No module imports itself through others: not inside a function, and not for a type either."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import diver_trt

PACKAGE = Path(diver_trt.__file__).parent


def test_the_package_has_no_import_cycle() -> None:
    modules = {name_of(path): path for path in PACKAGE.rglob("*.py")}
    arrows = {name: imported(path, modules) - {name} for name, path in modules.items()}
    assert sum(map(len, arrows.values())) > len(modules), "the imports were not found"
    TopologicalSorter(arrows).prepare()  # raises CycleError, which names the cycle


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, modules: dict[str, Path]) -> set[str]:
    """Return the modules that a file imports anywhere; `from a import b` may be `a.b` or of `a`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else str(node.module))
    return found & modules.keys()

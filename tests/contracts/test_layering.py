"""The map of the house, checked: nouns import only nouns lower in the list, verbs import no verbs, lazy imports counted."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import octavo

PACKAGE = Path(octavo.__file__).resolve().parent

# Lowest first; the rooms of one row may not import each other unless the row says so below.
ORDER: list[set[str]] = [
    {"errors"},
    {"settings", "registry", "telemetry", "charts"},
    {"machine"},
    {"ceilings"},
    {"formats"},
    {"schemes"},
    {"qtensor"},
    {"layouts"},
    {"checkpoints", "cache"},
    {"kernels"},
    {"policy", "text"},
    {"layers"},
    {"models"},
    {"loading"},
    {"calibration", "conversion", "quality", "engine"},
    {"workloads", "modules", "traffic", "monitor"},
    {"spans"},
    {"doctor", "inspect", "quantize", "train", "prune", "tune", "speed", "trace", "serve", "evaluate", "bench", "validate",
     "advise"},
    {"cli"},
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
FORBIDDEN = {("kernels", "checkpoints"), ("checkpoints", "kernels")}


def room_of(parts: tuple[str, ...]) -> str | None:
    """`octavo.kernels.native` -> `kernels`; the package itself -> None."""
    return parts[1] if len(parts) > 1 else None


def module_parts(path: Path) -> tuple[str, ...]:
    relative = path.relative_to(PACKAGE.parent).with_suffix("")
    parts = relative.parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def typing_only(tree: ast.AST) -> set[int]:
    """ids of the nodes under `if TYPE_CHECKING:`: not imports of the running program."""
    hidden: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                hidden.update(id(n) for n in ast.walk(child))
    return hidden


def imports_of(path: Path) -> set[str]:
    """Rooms that a file imports, at the top or inside a function."""
    tree = ast.parse(path.read_text())
    parts = module_parts(path)
    package = parts if path.name == "__init__.py" else parts[:-1]
    hidden = typing_only(tree)
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        targets: list[tuple[str, ...]] = []
        if isinstance(node, ast.Import):
            targets = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - (node.level - 1)]
                module = tuple(node.module.split(".")) if node.module else ()
                targets = [base + module + (alias.name,) for alias in node.names]
            elif node.module:
                targets = [tuple(node.module.split(".")) + (alias.name,) for alias in node.names]
        for target in targets:
            if target[0] == "octavo" and (room := room_of(target)) and room in RANK:
                found.add(room)
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_reach_down(path: Path) -> None:
    here = room_of(module_parts(path))
    if here is None or here not in RANK:
        assert path.parent == PACKAGE, f"{path.name} lies in a room that is not on the map"
        return
    for room in imports_of(path) - {here}:
        assert (here, room) not in FORBIDDEN, f"{here} must not know {room}"
        assert RANK[room] < RANK[here], f"{path.relative_to(PACKAGE)} ({here}) imports {room}, which does not lie below it"


def test_every_room_is_on_the_map() -> None:
    rooms = {p.stem if p.is_file() else p.name for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__", "__main__"} <= set(RANK), "a room is missing from ORDER: redraw the map in DESIGN.md first"

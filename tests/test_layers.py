"""Imports point down one list of rooms, and never to a room beside."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "pyfast_nas"
ROOMS = (
    {"cli"},
    {"bench"},
    {"engine"},
    {"algorithms", "viz"},
    {"costs"},
    {"hypergradients", "spaces", "data"},
    {"nn"},
    {"ops"},
    {"_ext"},
)
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}


def imported(tree: ast.AST) -> set[str]:
    """Return the rooms that a module imports from."""
    rooms = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "pyfast_nas":
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyfast_nas."):
            rooms.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            parts = (alias.name.split(".") for alias in node.names)
            rooms |= {part[1] for part in parts if part[0] == "pyfast_nas" and len(part) > 1}
    return rooms


def test_no_room_imports_from_above_or_beside() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room in LEVEL:
            others = imported(ast.parse(path.read_text())) & LEVEL.keys() - {room}
            wrong = {other for other in others if LEVEL[other] <= LEVEL[room]}
            assert not wrong, f"{path.relative_to(PACKAGE)} imports from {sorted(wrong)}"


def test_every_folder_is_a_room() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= LEVEL.keys()


def test_each_form_of_import_is_seen() -> None:
    source = (
        "from pyfast_nas import nn, ops\nimport pyfast_nas.cli.main\nfrom pyfast_nas.viz import x"
    )
    assert imported(ast.parse(source)) == {"nn", "ops", "cli", "viz"}

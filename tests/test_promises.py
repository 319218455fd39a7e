"""Every promise of docs/reliability.md that a CPU can show has a test that carries its id."""

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ROW = re.compile(r"^\| ([A-Z]\d+a?) \|.*\| ([^|]+) \|$")


def promised() -> dict[str, str]:
    """Return id -> where it is shown, from the tables of the page."""
    lines = (REPOSITORY / "docs" / "reliability.md").read_text().splitlines()
    return {found[1]: found[2].strip() for line in lines if (found := ROW.match(line))}


def marked() -> set[str]:
    """Return the ids of every ``pytest.mark.promise(...)`` in the suite."""
    ids = set()
    for path in (REPOSITORY / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.promise"):
                ids.update(word.value for word in node.args if isinstance(word, ast.Constant))
    return ids


def test_every_promise_has_its_test() -> None:
    rows = promised()
    assert len(rows) > 20
    missing = {name for name, where in rows.items() if "CPU" in where} - marked()
    assert not missing, f"promised without a test: {sorted(missing)}"


def test_every_mark_is_a_promise() -> None:
    unknown = marked() - promised().keys()
    assert not unknown, f"tests carry ids that docs/reliability.md does not list: {sorted(unknown)}"

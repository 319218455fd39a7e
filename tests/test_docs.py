"""The documentation runs: every docstring example, and every Python block of the pages below."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import pyfast_nas

REPOSITORY = Path(__file__).resolve().parent.parent
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(pyfast_nas.__path__, "pyfast_nas.")
    if not module.name.endswith(("__main__", "._C", "._version"))
)
PAGES = (
    "README.md",
    "docs/accelerate.md",
    "docs/costs.md",
    "docs/hypergradients.md",
    "docs/spaces.md",
)
PUBLIC = ("pyfast_nas", "pyfast_nas.ops", "pyfast_nas.hypergradients")


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_declared_and_present(name: str) -> None:
    module = importlib.import_module(name)
    names = getattr(module, "__all__", None)
    assert names is not None, f"{name} has no __all__"
    assert len(set(names)) == len(names)
    for public in names:
        assert hasattr(module, public)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_have_an_example(name: str) -> None:
    module = importlib.import_module(name)
    for public in module.__all__:
        thing = getattr(module, public)
        if inspect.isfunction(thing):
            assert ">>>" in (thing.__doc__ or ""), f"{name}.{public} has no example"


def blocks() -> list[str]:
    """Return the Python blocks of the pages."""
    text = "".join((REPOSITORY / page).read_text() for page in PAGES)
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.splitlines()[0][:40])
def test_block_runs(block: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(block, {"__name__": "readme"})


def test_documents_link_to_files_that_exist() -> None:
    for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"

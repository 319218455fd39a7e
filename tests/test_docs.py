"""The documentation runs: every docstring example and every Python block; it has every option."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import pyfast_nas
from pyfast_nas.algorithms import ALGORITHMS
from pyfast_nas.cli import costs, search, train
from pyfast_nas.cli.main import COMMANDS
from pyfast_nas.cli.parsing import option_names
from pyfast_nas.engine import SearchConfig, TrainConfig
from pyfast_nas.spaces import SPACES

REPOSITORY = Path(__file__).resolve().parent.parent
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(pyfast_nas.__path__, "pyfast_nas.")
    if not module.name.endswith(("__main__", "._C", "._version"))
)
PAGES = (
    "README.md",
    "docs/accelerate.md",
    "docs/algorithms/darts.md",
    "docs/algorithms/unas.md",
    "docs/concepts.md",
    "docs/costs.md",
    "docs/hypergradients.md",
    "docs/spaces.md",
)
OPTIONS = (
    *(search.Choice, SearchConfig, train.Choice, TrainConfig, costs.Costs, costs.Latency),
    *ALGORITHMS.values(),
    *SPACES.values(),
    *(
        getattr(importlib.import_module(f"pyfast_nas.cli.{command.module}"), command.options)
        for name, command in COMMANDS.items()
        if name not in ("search", "train")
    ),
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


@pytest.mark.parametrize("kind", OPTIONS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_option_stands_on_a_page(kind: type) -> None:
    pages = "".join(page.read_text() for page in (REPOSITORY / "docs").rglob("*.md"))
    names = option_names(kind)
    switched_off = {name.replace("--", "--no-", 1) for name in names}
    missing = [
        name for name in names.keys() - switched_off if not re.search(rf"{name}(?![\w-])", pages)
    ]
    assert not missing, f"on no page of docs/: {sorted(missing)}"


def anchors(page: Path) -> set[str]:
    """Return what a link can name in a page: its headings, as they are shown on the web."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_documents_link_to_places_that_exist() -> None:
    for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]:
        for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
            if "://" in target:
                continue
            place = page.parent / target if target else page
            assert place.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(place), f"{page.name} links to {target}#{anchor}"

"""Builds the `_host` module once per session, or skips where nothing can be built."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from csrc import build

REPOSITORY = Path(__file__).resolve().parents[2]


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def host() -> ModuleType:
    """Give the math headers as Python functions; only what changed is compiled again."""
    tools = build.find_toolchain()
    if not (tools.cxx and tools.ninja and importlib.util.find_spec("pybind11")):
        pytest.skip("the _host module needs a C++ compiler, ninja and pybind11")
    return load("_host", build.build_host(REPOSITORY / "build" / "host", tools=tools))

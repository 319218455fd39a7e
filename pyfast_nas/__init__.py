"""Differentiable architecture search on native PyTorch kernels.

The public names of the package: `pyfast_nas.ops` is the functional layer, `pyfast_nas.nn` holds the
drop-in modules. Importing compiles nothing, prints nothing and starts no GPU context.
"""

import importlib
from typing import TYPE_CHECKING

from pyfast_nas import algorithms, data, engine, errors, nn, ops, spaces
from pyfast_nas._version import __version__
from pyfast_nas.engine import SearchConfig, SearchResult, TrainConfig, TrainResult, search, train
from pyfast_nas.errors import Error
from pyfast_nas.info import Info, info
from pyfast_nas.spaces import Genotype

if TYPE_CHECKING:
    from pyfast_nas import hypergradients
    from pyfast_nas.nn.accelerate import accelerate, restore
    from pyfast_nas.nn.acceleration_report import AccelerateReport

__all__ = [
    "AccelerateReport",
    "Error",
    "Genotype",
    "Info",
    "SearchConfig",
    "SearchResult",
    "TrainConfig",
    "TrainResult",
    "__version__",
    "accelerate",
    "algorithms",
    "data",
    "engine",
    "errors",
    "hypergradients",
    "info",
    "nn",
    "ops",
    "restore",
    "search",
    "spaces",
    "train",
]

# What most processes do not need is imported where it is first asked for.
_LATER = {
    "AccelerateReport": "pyfast_nas.nn.acceleration_report",
    "accelerate": "pyfast_nas.nn.accelerate",
    "hypergradients": "pyfast_nas.hypergradients",
    "restore": "pyfast_nas.nn.accelerate",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_LATER[name])
    value = globals()[name] = getattr(module, name, module)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})

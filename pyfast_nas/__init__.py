"""Differentiable architecture search on native PyTorch kernels.

The public names of the package: `pyfast_nas.ops` is the functional layer, `pyfast_nas.nn` holds the
drop-in modules. Importing compiles nothing, prints nothing and starts no GPU context.
"""

import importlib
from typing import TYPE_CHECKING

from pyfast_nas import errors
from pyfast_nas._version import __version__
from pyfast_nas.errors import Error
from pyfast_nas.info import Info, info

if TYPE_CHECKING:
    from pyfast_nas import algorithms, costs, data, engine, hypergradients, nn, ops, spaces
    from pyfast_nas.engine import (
        SearchConfig,
        SearchResult,
        TrainConfig,
        TrainResult,
        search,
        train,
    )
    from pyfast_nas.nn.accelerate import accelerate, restore
    from pyfast_nas.nn.acceleration_report import AccelerateReport
    from pyfast_nas.spaces import Genotype

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
    "costs",
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

# Rooms and names are imported where they are first asked for: a process that uses one of them does
# not wait for all.
_LATER = {
    "AccelerateReport": "pyfast_nas.nn.acceleration_report",
    "Genotype": "pyfast_nas.spaces",
    "SearchConfig": "pyfast_nas.engine",
    "SearchResult": "pyfast_nas.engine",
    "TrainConfig": "pyfast_nas.engine",
    "TrainResult": "pyfast_nas.engine",
    "accelerate": "pyfast_nas.nn.accelerate",
    "algorithms": "pyfast_nas.algorithms",
    "costs": "pyfast_nas.costs",
    "data": "pyfast_nas.data",
    "engine": "pyfast_nas.engine",
    "hypergradients": "pyfast_nas.hypergradients",
    "nn": "pyfast_nas.nn",
    "ops": "pyfast_nas.ops",
    "restore": "pyfast_nas.nn.accelerate",
    "search": "pyfast_nas.engine",
    "spaces": "pyfast_nas.spaces",
    "train": "pyfast_nas.engine",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_LATER[name])
    value = globals()[name] = getattr(module, name, module)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})

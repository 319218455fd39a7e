"""Differentiable architecture search on native PyTorch kernels.

The public names of the package: `pyfast_nas.ops` is the functional layer, `pyfast_nas.nn` holds the
drop-in modules. Importing compiles nothing, prints nothing and starts no GPU context.
"""

from pyfast_nas import algorithms, data, engine, errors, nn, ops, spaces
from pyfast_nas._version import __version__
from pyfast_nas.engine import SearchConfig, SearchResult, TrainConfig, TrainResult, search, train
from pyfast_nas.errors import Error
from pyfast_nas.info import Info, info
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
    "data",
    "engine",
    "errors",
    "info",
    "nn",
    "ops",
    "restore",
    "search",
    "spaces",
    "train",
]

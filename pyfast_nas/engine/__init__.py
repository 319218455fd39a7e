"""The loops: search an architecture, train a network, compare with chance; files and progress."""

from pyfast_nas.engine.callbacks import Callback, EpochEnd, GoBack, Stop
from pyfast_nas.engine.compare import Comparison, compare
from pyfast_nas.engine.config import SearchConfig, TrainConfig
from pyfast_nas.engine.curvature import CurvatureMonitor
from pyfast_nas.engine.preparation import preset_algorithm
from pyfast_nas.engine.presets import PRESETS, Preset, preset
from pyfast_nas.engine.progress import Progress
from pyfast_nas.engine.search import SearchResult, search
from pyfast_nas.engine.train import TrainResult, train

__all__ = [
    "PRESETS",
    "Callback",
    "Comparison",
    "CurvatureMonitor",
    "EpochEnd",
    "GoBack",
    "Preset",
    "Progress",
    "SearchConfig",
    "SearchResult",
    "Stop",
    "TrainConfig",
    "TrainResult",
    "compare",
    "preset",
    "preset_algorithm",
    "search",
    "train",
]

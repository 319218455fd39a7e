"""Search algorithms by name, one file each; the loop that drives them is the engine's."""

from pyfast_nas.algorithms.base import SearchAlgorithm, SharedWeightSearch
from pyfast_nas.algorithms.bilevel_search import BilevelSearch
from pyfast_nas.algorithms.darts import DARTS
from pyfast_nas.algorithms.gdas import GDAS
from pyfast_nas.algorithms.gradient_search import GradientSearch
from pyfast_nas.algorithms.idarts import IDARTS
from pyfast_nas.algorithms.msg_das import MSGDAS
from pyfast_nas.algorithms.options import Option, Range, check_options, option_table
from pyfast_nas.algorithms.path_search import PathSearch
from pyfast_nas.algorithms.proxylessnas import ProxylessNAS
from pyfast_nas.algorithms.random_search import RandomSearch
from pyfast_nas.algorithms.snas import SNAS
from pyfast_nas.algorithms.step_graph import StepGraph
from pyfast_nas.algorithms.temperature import TemperedSearch
from pyfast_nas.algorithms.unas import UNAS

__all__ = [
    "ALGORITHMS",
    "DARTS",
    "GDAS",
    "IDARTS",
    "MSGDAS",
    "SNAS",
    "UNAS",
    "BilevelSearch",
    "GradientSearch",
    "Option",
    "PathSearch",
    "ProxylessNAS",
    "RandomSearch",
    "Range",
    "SearchAlgorithm",
    "SharedWeightSearch",
    "StepGraph",
    "TemperedSearch",
    "check_options",
    "option_table",
]

ALGORITHMS: dict[str, type[SharedWeightSearch]] = {
    algorithm.name: algorithm
    for algorithm in (
        DARTS,
        GDAS,
        IDARTS,
        MSGDAS,
        ProxylessNAS,
        RandomSearch,
        SNAS,
        UNAS,
    )
}

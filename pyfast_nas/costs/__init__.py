"""What a network costs to run: tables by candidate, where they come from, and penalties."""

from pyfast_nas.costs.counting import count, count_network
from pyfast_nas.costs.extremes import extremes
from pyfast_nas.costs.latency import measure_latency, measure_network
from pyfast_nas.costs.lookup import LatencyLookup
from pyfast_nas.costs.pareto import pareto_front
from pyfast_nas.costs.penalties import add_linear, hinge, mul_log
from pyfast_nas.costs.resource import ResourceCost
from pyfast_nas.costs.table import CostTable
from pyfast_nas.costs.tables import Fit, fit_column
from pyfast_nas.costs.whole_networks import DrawnNetwork, fit_costs

__all__ = [
    "CostTable",
    "DrawnNetwork",
    "Fit",
    "LatencyLookup",
    "ResourceCost",
    "add_linear",
    "count",
    "count_network",
    "extremes",
    "fit_column",
    "fit_costs",
    "hinge",
    "measure_latency",
    "measure_network",
    "mul_log",
    "pareto_front",
]

"""What a network costs to run: tables by candidate, where they come from, and penalties."""

from pyfast_nas.costs.counting import count, count_network
from pyfast_nas.costs.latency import measure_latency, measure_network
from pyfast_nas.costs.penalties import add_linear, hinge, mul_log
from pyfast_nas.costs.resource import ResourceCost
from pyfast_nas.costs.table import CostTable

__all__ = [
    "CostTable",
    "ResourceCost",
    "add_linear",
    "count",
    "count_network",
    "hinge",
    "measure_latency",
    "measure_network",
    "mul_log",
]

"""What a network costs to run: tables by candidate, where they come from, and penalties."""

from pyfast_nas.costs.counting import count, count_network
from pyfast_nas.costs.table import CostTable

__all__ = ["CostTable", "count", "count_network"]

"""The Pareto front: what nothing else beats in both accuracy and cost."""

import math
from collections.abc import Sequence

__all__ = ["pareto_front"]


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Say of each point whether no other one dominates it.

    What dominates costs no more, is no worse, and differs in one of the two; so points that agree
    in both are on the front together or not at all.

    Args:
        costs: Of which less is better.
        values: Of which more is better, one for each cost.

    Raises:
        ValueError: If there are not as many of one as of the other, or one is not finite.

    Example:
        >>> pareto_front([1.0, 2.0, 3.0, 3.0], [0.8, 0.9, 0.9, 0.95])
        [True, True, False, True]
    """
    if len(costs) != len(values) or not all(map(math.isfinite, (*costs, *values))):
        raise ValueError(
            f"pareto_front: costs and values must be finite and equally many, got {len(costs)} and "
            f"{len(values)}"
        )
    is_on_front = [False] * len(costs)
    best, price = -math.inf, math.nan  # the best so far, and the least that it costs
    for place in sorted(range(len(costs)), key=lambda place: (costs[place], -values[place])):
        if values[place] > best or (values[place] == best and costs[place] == price):
            best, price = values[place], costs[place]
            is_on_front[place] = True
    return is_on_front

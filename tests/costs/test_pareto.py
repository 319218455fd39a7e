"""The Pareto front, against its definition over all pairs of points."""

import itertools
import random

import pytest

from pyfast_nas.costs import pareto_front


def by_definition(costs, values):
    points = list(zip(costs, values, strict=True))

    def dominates(a, b):
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    return [not any(dominates(other, point) for other in points) for point in points]


@pytest.mark.parametrize("grid", [2, 4, 10, 10**6])
def test_it_is_what_nothing_dominates(grid):
    """A coarse grid has ties in cost, in value and in both; a fine one has none."""
    draws = random.Random(grid)
    for count in range(60):
        costs = [draws.randrange(-grid, grid) / 4 for _ in range(count)]
        values = [draws.randrange(grid) / 4 for _ in range(count)]
        assert pareto_front(costs, values) == by_definition(costs, values)


def test_the_order_of_the_points_does_not_matter():
    points = [(1.0, 0.5), (1.0, 0.5), (1.0, 0.4), (2.0, 0.5), (2.0, 0.7), (0.5, 0.1)]
    for order in itertools.permutations(range(len(points))):
        costs, values = zip(*(points[place] for place in order), strict=True)
        found = pareto_front(costs, values)
        assert [place for place, kept in zip(order, found, strict=True) if kept] == [
            place for place in order if place in {0, 1, 4, 5}
        ]


def test_nothing_and_nonsense():
    assert pareto_front([], []) == []
    for costs, values in (([1.0], []), ([float("nan")], [1.0]), ([1.0], [float("inf")])):
        with pytest.raises(ValueError, match="pareto_front: costs and values must be finite"):
            pareto_front(costs, values)

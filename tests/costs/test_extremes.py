"""The cheapest and the costliest architecture, against all others."""

import itertools

import pytest
import torch

from pyfast_nas import spaces
from pyfast_nas.costs import CostTable, extremes
from pyfast_nas.errors import ConfigError

FEW = spaces.DARTS(nodes=2, operations=("none", "skip_connect", "max_pool_3x3"))
OPS = list(itertools.product(FEW.operations[1:], repeat=2))

LIMITS = (torch.amin, torch.amax)


def drawn_costs(space) -> CostTable:
    rows = {
        table: torch.rand(len(rows), len(rows[0]), dtype=torch.float64)
        for table, rows in space.candidates.items()
    }
    return CostTable("ms", 1.0, rows)


def all_of(space):
    if not isinstance(space, spaces.DARTS):
        return space.enumerate()
    pairs = [
        [((a, i), (b, j)) for i, j in itertools.combinations(range(n), 2) for a, b in OPS]
        for n in (2, 3)
    ]
    cells = [(*first, *second) for first, second in itertools.product(*pairs)]
    # What one cell costs does not depend on the other.
    return [space.from_pairs(normal=cell, reduce=cell) for cell in cells]


@pytest.mark.parametrize("space", [spaces.Toy(), FEW])
def test_no_architecture_costs_less_or_more(space) -> None:
    torch.manual_seed(0)
    for _ in range(3):
        costs = drawn_costs(space)
        if isinstance(space, spaces.DARTS):
            costs = CostTable("ms", 1.0, dict.fromkeys(costs.rows, costs.rows["normal"]))
        totals = [costs.of(genotype, space.candidates) for genotype in all_of(space)]
        found = extremes(costs, space)
        for genotype in found:
            space.check(genotype)
        got = [costs.of(genotype, space.candidates) for genotype in found]
        assert got == pytest.approx([min(totals), max(totals)], rel=1e-12)


@pytest.mark.parametrize("space", [spaces.NASBench201(), spaces.DARTS(nodes=2, edges="all")])
def test_none_counts_where_an_architecture_may_have_it(space) -> None:
    torch.manual_seed(0)
    costs = drawn_costs(space)
    found = extremes(costs, space)
    sides = [costs.of(genotype, space.candidates) for genotype in found]
    ends = [sum(float(f(rows, 1).sum()) for rows in costs.rows.values()) for f in LIMITS]
    assert sides == pytest.approx([1 + end for end in ends])
    free = CostTable(
        "ms",
        1.0,
        {
            t: torch.arange(rows.numel()).view(rows.shape) % rows.shape[1]
            for t, rows in costs.rows.items()
        },
    )
    cheapest = extremes(free, space)[0]
    space.check(cheapest)
    assert {edge.op for cell in cheapest.cells.values() for edge in cell} == {"none"}


def test_a_table_of_another_space_is_refused() -> None:
    costs = CostTable("ms", 1.0, {"cell": torch.zeros(2, 4)})
    with pytest.raises(ConfigError, match=r"extremes: costs must be a table .*\(6, 5\)"):
        extremes(costs, spaces.NASBench201())

"""The cheapest and the dearest architecture, against all others."""

import itertools

import pytest
import torch

from pyfast_nas import spaces
from pyfast_nas.costs import CostTable, extremes

FEW = spaces.DARTS(nodes=2, operations=("none", "skip_connect", "max_pool_3x3"))
OPS = list(itertools.product(FEW.operations[1:], repeat=2))


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


def test_none_counts_where_an_architecture_may_have_it() -> None:
    space = spaces.NASBench201()
    torch.manual_seed(0)
    costs = drawn_costs(space)
    sides = [costs.of(genotype, space.candidates) for genotype in extremes(costs, space)]
    values = costs.rows["cell"]
    assert sides == pytest.approx([1 + float(f(1).values.sum()) for f in (values.min, values.max)])
    free = CostTable("ms", 1.0, {"cell": torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]]).expand(6, 5)})
    assert space.to_string(extremes(free, space)[0]).count("none") == 6

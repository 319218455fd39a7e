"""Networks drawn from a supernet: which candidates are timed, and tables fitted to many."""

import pytest
import torch

from pyfast_nas import spaces
from pyfast_nas.costs import CostTable, DrawnNetwork, fit_costs
from pyfast_nas.errors import ConfigError, DataError

RAGGED = {"cell": [["a", "b", "c"], ["a", "b"]], "stem": [["a", "b", "c", "d"]]}
SEED = torch.tensor([5, 0])


def linear_costs() -> CostTable:
    generator = torch.Generator().manual_seed(0)
    cell = torch.rand(2, 3, generator=generator)
    cell[1, 2] = 0
    return CostTable("ms", 2.5, {"cell": cell, "stem": torch.rand(1, 4, generator=generator)})


def test_a_linear_cost_is_recovered_when_the_ridge_vanishes():
    true = linear_costs()
    fitted = fit_costs(true.of, RAGGED, 200, seed=SEED, unit="ms", ridge=1e-9)
    seen = []
    fit_costs(lambda choice: seen.append(choice) or 0.0, RAGGED, 50, seed=SEED + 1, unit="ms")
    for choice in seen:
        assert fitted.of(choice) == pytest.approx(true.of(choice), abs=1e-7)
    assert fitted.unit == "ms" and fitted.candidates["stem"] == (("a", "b", "c", "d"),)


def test_networks_are_drawn_uniformly_and_padding_never():
    seen = []
    fit_costs(lambda choice: seen.append(choice) or 1.0, RAGGED, 3000, seed=SEED, unit="ms")
    for table, rows in RAGGED.items():
        flags = torch.stack([choice[table] for choice in seen])
        assert flags.dtype is torch.bool and (flags.sum(-1) == 1).all()
        for row, names in enumerate(rows):
            counts = flags[:, row].sum(0).double()
            assert not counts[len(names) :].any()
            want = 3000 / len(names)
            # At most three degrees of freedom, level 1e-6.
            assert ((counts[: len(names)] - want).square() / want).sum() < 30.66


def test_one_seed_one_fit():
    tables = [
        fit_costs(linear_costs().of, RAGGED, 20, seed=seed, unit="ms").to_dict()
        for seed in (SEED, SEED, SEED + 1)
    ]
    assert tables[0] == tables[1] != tables[2]


def test_no_sample_and_costs_that_are_not_finite_are_refused():
    with pytest.raises(ConfigError, match="samples must be at least 1, got 0"):
        fit_costs(lambda choice: 1.0, RAGGED, 0, seed=SEED, unit="ms")
    with pytest.raises(DataError, match="must be 3 finite numbers"):
        fit_costs(lambda choice: float("nan"), RAGGED, 3, seed=SEED, unit="ms")


SPACE = spaces.NASBench201(channels=4, cells=1, image_size=8)


def test_only_what_was_chosen_runs_and_the_supernet_stays():
    supernet = SPACE.supernet()
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    network = DrawnNetwork(supernet, (2, 3, 8, 8))
    ran = set()
    for table, row, edge in network.supernet.placed_edges():
        for column in range(edge.num_ops):
            edge.candidate(column).register_forward_hook(
                lambda *_, place=(table, row, column): ran.add(place)
            )
    picks = [3, 1, 4, 2, 3, 2]
    milliseconds = network.milliseconds({"cell": torch.eye(5).bool()[picks]}, warmup=0, repeats=1)
    assert milliseconds > 0
    assert ran == {("cell", row, column) for row, column in enumerate(picks)}
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())
    assert supernet.training and not network.supernet.training


@pytest.mark.parametrize("space", [SPACE, spaces.DARTS(channels=4, cells=2, nodes=1)])
def test_layers_are_timed_in_the_layout_of_a_derived_network(space):
    network = DrawnNetwork(space.supernet(), (2, 3, 8, 8))
    layouts = set()
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_pre_hook(
                lambda _, xs: layouts.add(xs[0].is_contiguous(memory_format=torch.channels_last))
            )
    choice = {
        table: torch.eye(len(rows[0])).bool()[[3] * len(rows)]
        for table, rows in network.supernet.candidates.items()
    }
    network.milliseconds(choice, warmup=0, repeats=1)
    assert layouts == {False}

"""Costs of a search: counted, read from a file, kept in its state, refused if they do not fit."""

import dataclasses
from pathlib import Path

import pytest
import torch

from pyfast_nas import spaces
from pyfast_nas.algorithms import DARTS
from pyfast_nas.algorithms.cost_aware import CostAware
from pyfast_nas.costs import CostTable, count
from pyfast_nas.errors import ConfigError

SPACE = spaces.NASBench201(channels=4, cells=1, image_size=8)


@dataclasses.dataclass(kw_only=True, eq=False)
class Search(CostAware, DARTS):
    """A search that has costs and does nothing with them."""


def test_without_a_cost_there_is_no_table(start) -> None:
    assert start(Search(), SPACE).cost_table is None


@pytest.mark.parametrize("unit", ["parameters", "multiply-adds"])
def test_counted_costs_are_those_of_the_space(unit: str, start) -> None:
    search = start(Search(cost=unit), SPACE)
    assert search.cost_table.to_dict() == count(search.supernet, (1, 3, 8, 8))[unit].to_dict()


def test_latency_is_measured_where_the_search_runs(start) -> None:
    table = start(Search(cost="latency"), SPACE).cost_table
    none, skip, _, conv, _ = table.rows["cell"][0].tolist()
    assert table.unit == "ms"
    assert none == 0.0 <= skip < conv


def test_images_need_not_be_square(start) -> None:
    wide = dataclasses.replace(SPACE, image_size=(8, 16))
    costs = [start(Search(cost="multiply-adds"), s).cost_table.rows["cell"] for s in (SPACE, wide)]
    assert torch.equal(2 * costs[0], costs[1])


def test_table_is_read_from_a_file(tmp_path: Path, start) -> None:
    path = tmp_path / "costs.json"
    CostTable("mJ", 1.0, {"cell": torch.rand(2, 4)}).save(path)
    search = start(Search(cost=str(path)), spaces.Toy())
    assert search.cost_table.to_dict() == CostTable.load(path).to_dict()


def test_table_of_other_candidates_is_refused(tmp_path: Path, start) -> None:
    path = tmp_path / "costs.json"
    CostTable("mJ", 1.0, {"cell": torch.rand(2, 4)}).save(path)
    with pytest.raises(ConfigError, match=r"\(6, 5\).*got .*\(2, 4\)"):
        start(Search(cost=str(path)), SPACE)


def test_table_of_other_names_is_refused(tmp_path: Path, start) -> None:
    path = tmp_path / "costs.json"
    names = [["a", "b", "c", "d", "e"]] * 6
    CostTable("mJ", 1.0, {"cell": torch.rand(6, 5)}, {"cell": names}).save(path)
    with pytest.raises(ConfigError, match=r"cost must be a table of the candidates \('none', "):
        start(Search(cost=str(path)), SPACE)


def test_state_holds_names_and_what_costs_are_of(start) -> None:
    search = start(Search(cost="latency"), SPACE)
    state = search.state_dict()
    search.load_state_dict(state)
    assert search.cost_table.about == "batch of 24, cpu, 8x8x3"
    assert search.cost_table.candidates == dict(SPACE.candidates)


def test_space_without_images_is_refused(start) -> None:
    words = "must be 'none' or the file of a table where the space, 'toy', has no images"
    with pytest.raises(ConfigError, match=words):
        start(Search(cost="parameters"), spaces.Toy())


def test_unknown_cost_is_refused(start) -> None:
    with pytest.raises(ConfigError, match="or the file of a table, got 'flops': no such file"):
        start(Search(cost="flops"), SPACE)


def test_resumed_search_has_the_costs_it_was_saved_with(tmp_path: Path, start) -> None:
    path = tmp_path / "costs.json"
    CostTable("mJ", 1.0, {"cell": torch.rand(2, 4)}).save(path)
    search = start(Search(cost=str(path)), spaces.Toy())
    state = search.state_dict()
    CostTable("mJ", 2.0, {"cell": torch.rand(2, 4)}).save(path)
    resumed = start(Search(cost=str(path)), spaces.Toy())
    assert resumed.cost_table.fixed == 2.0
    resumed.load_state_dict(state)
    assert resumed.cost_table.to_dict() == search.cost_table.to_dict()

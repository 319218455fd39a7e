"""DARTS cells that keep every edge: derived, drawn, counted, checked, built and inherited."""

import pytest
import torch

from pyfast_nas.algorithms.random_search import genotype_gates
from pyfast_nas.costs import count, count_network
from pyfast_nas.errors import GenotypeError, SearchSpaceError
from pyfast_nas.nn.cell import edge_list
from pyfast_nas.spaces import DARTS, DARTS_V2, Genotype, GenotypeEdge
from pyfast_nas.spaces.choices import choices_of

SMALL = DARTS(channels=4, cells=3, nodes=2, edges="all")
TABLES = ("normal", "reduce")


def peaks(*columns: int) -> dict[str, torch.Tensor]:
    return dict.fromkeys(TABLES, torch.eye(8)[list(columns)])


def test_derived_cell_keeps_all_edges_whose_best_candidate_is_not_none() -> None:
    genotype = SMALL.derive(peaks(4, 0, 0, 3, 7))
    names = ["sep_conv_3x3", "none", "none", "skip_connect", "dil_conv_5x5"]
    assert [edge.op for edge in genotype.cells["reduce"]] == names
    places = tuple((edge.source, edge.target) for edge in genotype.cells["normal"])
    assert places == edge_list(2)


def test_more_than_two_edges_of_a_node_are_kept() -> None:
    genotype = SMALL.derive(peaks(4, 4, 4, 4, 4))
    assert sum(e.target == 3 and e.op != "none" for e in genotype.cells["normal"]) == 3


@pytest.mark.parametrize("columns", [(4, 0, 0, 3, 7), (4, 3, 0, 0, 0), (0, 0, 0, 0, 0)])
def test_network_is_the_one_hot_supernet(columns: tuple[int, ...]) -> None:
    """Also where a node has no edge left, and where no cell has one."""
    supernet = SMALL.supernet(torch.Generator().manual_seed(0)).double()
    genotype = SMALL.derive(peaks(*columns))
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    network = SMALL.inherit(genotype, supernet)
    with torch.no_grad():
        torch.testing.assert_close(network(x), supernet(x, genotype_gates(genotype, supernet)))


def test_network_to_train_is_built_and_names_its_genotype() -> None:
    genotype = SMALL.derive(peaks(4, 0, 0, 3, 7))
    network = SMALL.build(genotype, channels=4, cells=3)
    assert network(torch.ones(2, 3, 16, 16)).shape == (2, 10)
    assert SMALL.genotype_of(network) == genotype
    assert Genotype.from_json(genotype.to_json()) == genotype


def test_choices_name_the_operation_of_every_edge() -> None:
    flags = choices_of(SMALL.derive(peaks(4, 0, 0, 3, 7)), SMALL.candidates)["normal"]
    assert flags.long().argmax(1).tolist() == [4, 0, 0, 3, 7]
    assert flags.sum(1).tolist() == [1] * 5


def test_costs_are_those_of_the_network() -> None:
    supernet = SMALL.supernet()
    tables = count(supernet, (1, 3, 16, 16))
    genotype = SMALL.random_genotype(torch.Generator().manual_seed(3))
    counted = count_network(SMALL.inherit(genotype, supernet), (1, 3, 16, 16))
    assert {u: table.of(genotype, SMALL.candidates) for u, table in tables.items()} == counted


def test_random_cells_use_every_operation_on_every_edge() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [SMALL.random_genotype(generator) for _ in range(200)]
    for index in range(5):
        assert {g.cells["normal"][index].op for g in drawn} == set(SMALL.operations)


def test_size_counts_every_operation_on_every_edge() -> None:
    assert DARTS(edges="all").size() == 8**28


def test_cells_of_the_other_rule_are_refused() -> None:
    with pytest.raises(GenotypeError, match="must have 3 edges into node 3, got 2"):
        DARTS(edges="all").check(DARTS_V2)
    with pytest.raises(GenotypeError, match=r"op must be one of max_pool_3x3.* got 'none'"):
        DARTS(nodes=2).check(SMALL.derive(peaks(0, 0, 0, 0, 0)))
    with pytest.raises(GenotypeError, match="must have 2 edges into node 3, got 3"):
        DARTS(nodes=2).check(SMALL.derive(peaks(4, 4, 4, 4, 4)))


def test_a_missing_edge_is_refused() -> None:
    genotype = SMALL.derive(peaks(4, 4, 4, 4, 4))
    edges = tuple(e for e in genotype.cells["normal"] if (e.source, e.target) != (0, 3))
    cells = {"normal": edges, "reduce": genotype.cells["reduce"]}
    with pytest.raises(GenotypeError, match=r"cells\.normal must have 3 edges into node 3, got 2"):
        SMALL.check(Genotype("darts", cells, genotype.outputs))
    assert GenotypeEdge(0, 3, "sep_conv_3x3") in genotype.cells["normal"]


def test_unknown_rule_is_refused() -> None:
    with pytest.raises(SearchSpaceError, match="edges must be 'two' or 'all', got 'three'"):
        DARTS(edges="three")

"""Counts against published ones, by candidate and of whole networks; and no trace of counting."""

import csv
import gzip
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pyfast_nas import spaces
from pyfast_nas.costs import count, count_network
from pyfast_nas.errors import ConfigError, SearchSpaceError
from pyfast_nas.nn import MixedOp, Supernet
from pyfast_nas.nn.primitives import PRIMITIVES

IMAGE = (1, 3, 32, 32)
C, Y = 12, 8  # channels, side of the output


def everything(candidates) -> dict[str, Tensor]:
    return {table: torch.ones(len(rows), len(rows[0])) for table, rows in candidates.items()}


@pytest.mark.parametrize("space", [spaces.DARTS(), spaces.NASBench201()], ids=lambda s: s.name)
def test_supernet_has_as_many_parameters_as_published(space) -> None:
    table = count(space.supernet(), IMAGE)["parameters"]
    published = {"darts": 1_930_618, "nas-bench-201": 1_692_826}
    assert table.of(everything(space.candidates)) == published[space.name]


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [("nor_conv_3x3", 1_531_546), ("nor_conv_1x1", 241_306), ("skip_connect", 73_306)],
)
def test_nas_bench_201_networks_have_as_many_parameters_as_published(
    operation: str, parameters: int
) -> None:
    space = spaces.NASBench201()
    nodes = ("".join(f"|{operation}~{source}" for source in range(n)) + "|" for n in (1, 2, 3))
    network = space.build(space.from_string("+".join(nodes)))
    assert count_network(network, IMAGE)["parameters"] == parameters


@pytest.mark.parametrize("index", [0, 1, 2, 777, 15_624])
def test_nas_bench_201_networks_cost_what_the_benchmark_says(real_data: Path, index: int) -> None:
    with gzip.open(real_data / "nas" / "nas_bench_201.csv.gz", "rt") as file:
        row = list(csv.DictReader(file))[index]
    space = spaces.NASBench201()
    counted = count_network(space.build(space.from_string(row["arch"])), IMAGE)
    assert counted["parameters"] == int(row["c10_params"])
    # The benchmark counts the ten sums with the biases of the classifier, too.
    assert counted["multiply-adds"] + 10 == round(float(row["c10_mmacs"]) * 1e6)


@pytest.mark.parametrize(
    ("genotype", "parameters"), [(spaces.DARTS_V1, 3_169_414), (spaces.DARTS_V2, 3_349_342)]
)
def test_darts_networks_have_as_many_parameters_as_published(genotype, parameters: int) -> None:
    counted = count_network(spaces.DARTS().build(genotype), IMAGE)
    assert counted["parameters"] == parameters


SNAS_TABLE = {
    **{f"sep_conv_{k}x{k}": (2 * C * k * k + 2 * C * C, 0, 8, 11) for k in (3, 5, 7)},
    **{f"dil_conv_{k}x{k}": (C * k * k + C * C, 0, 4, 7) for k in (3, 5)},
    **{f"{kind}_pool_3x3": (0, 9 * C * Y * Y, 2, 5) for kind in ("max", "avg")},
    "none": (0, 0, 0, 0),
}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", SNAS_TABLE)
def test_candidates_cost_what_the_code_of_snas_says(name: str, stride: int) -> None:
    n, windows, *maps = SNAS_TABLE[name]
    counted = count_network(
        PRIMITIVES[name](C, stride, False, False), (1, C, stride * Y, stride * Y)
    )
    assert counted == {
        "parameters": n,
        "multiply-adds": n * Y * Y,
        "operations": n * Y * Y + windows,
        "memory-access": maps[stride - 1] * C * Y * Y + n,
    }


@pytest.mark.parametrize(
    ("stride", "n", "accesses"),
    [(1, 0, 2 * C * Y * Y), (2, C * C, 2 * Y * Y * (4 * C + C // 2) + C * C)],
)
def test_skip_connections_cost_what_the_code_of_snas_says(
    stride: int, n: int, accesses: int
) -> None:
    skip = PRIMITIVES["skip_connect"](C, stride, False, False)
    counted = count_network(skip, (1, C, stride * Y, stride * Y))
    assert counted["memory-access"] == accesses
    assert counted["operations"] == counted["multiply-adds"] == n * Y * Y


@pytest.mark.parametrize(
    "space", [spaces.DARTS(cells=3, channels=4, nodes=2), spaces.NASBench201(cells=1, channels=4)]
)
def test_table_gives_what_a_derived_network_costs(space) -> None:
    supernet = space.supernet()
    tables = count(supernet, (1, 3, 16, 16))
    for seed in range(3):
        genotype = space.random_genotype(torch.Generator().manual_seed(seed))
        counted = count_network(space.inherit(genotype, supernet), (1, 3, 16, 16))
        of = {unit: table.of(genotype, space.candidates) for unit, table in tables.items()}
        assert of == counted


def test_counts_are_of_one_input_whatever_the_batch() -> None:
    supernet = spaces.NASBench201(cells=1, channels=4).supernet()
    one, many = (count(supernet, (batch, 3, 8, 8)) for batch in (1, 64))
    assert all(one[unit].to_dict() == many[unit].to_dict() for unit in one)


def test_images_may_shrink_to_one_pixel() -> None:
    supernet = spaces.NASBench201(cells=1, channels=4).supernet()
    assert count(supernet, (1, 3, 4, 4))["multiply-adds"].fixed > 0


@pytest.mark.parametrize(
    ("layer", "shape", "multiply_adds", "accesses"),
    [
        (nn.Linear(4, 6), (1, 4), 24, 4 + 6 + 24 + 6),
        (nn.Conv2d(4, 6, 3, groups=2, padding=1, bias=False), (1, 4, 5, 5), 2700, 250 + 108),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False), (1, 4, 5, 5), 2400, 700 + 96),
    ],
    ids=["linear", "grouped", "transposed"],
)
def test_known_layers(layer: nn.Module, shape, multiply_adds: int, accesses: int) -> None:
    counted = count_network(layer, shape)
    assert (counted["multiply-adds"], counted["memory-access"]) == (multiply_adds, accesses)


def test_counting_leaves_no_trace() -> None:
    supernet = spaces.DARTS(cells=2, channels=2, nodes=1, track_running_stats=True).supernet()
    supernet.cells[0].eval()
    supernet.stem.eval()
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    modes = [module.training for module in supernet.modules()]
    random = torch.get_rng_state()
    count(supernet, (1, 3, 8, 8))
    after = supernet.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [module.training for module in supernet.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in supernet.modules())
    assert supernet(torch.ones(2, 3, 8, 8)).shape == (2, 10)


def test_a_failing_pass_leaves_no_trace() -> None:
    supernet = spaces.NASBench201(cells=1, channels=2).supernet()
    with pytest.raises(SearchSpaceError, match=r"count: input_shape must be .*\[1, 5, 8, 8\]"):
        count(supernet, (1, 5, 8, 8))
    assert all(module.training for module in supernet.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in supernet.modules())


class Hidden(Supernet):
    """Says nothing of its edges, or runs only one of those it names."""

    def __init__(self, names: bool) -> None:
        super().__init__({"cell": [["a"], ["a"]]})
        self.edges = nn.ModuleList(MixedOp({"a": nn.Linear(2, 2)}) for _ in range(2))
        self.names = names

    def placed_edges(self):
        return (("cell", row, edge) for row, edge in enumerate(self.edges) if self.names)

    def mix(self, x: Tensor, gates) -> Tensor:
        return self.edges[0](x, gates["cell"].weights[0])


@pytest.mark.parametrize(
    ("names", "words"), [(False, "must name every mixed op"), (True, "'a' of row 1 of 'cell'")]
)
def test_what_cannot_be_found_is_refused(names: bool, words: str) -> None:
    with pytest.raises(SearchSpaceError, match=words):
        count(Hidden(names), (1, 2))


def test_a_shape_that_is_none_is_refused() -> None:
    supernet = spaces.NASBench201(cells=1, channels=2).supernet()
    for shape in ((), (1, 3, 0, 8), (1, 3, 8.0, 8)):
        with pytest.raises(ConfigError, match="count: input_shape must be positive integers"):
            count(supernet, shape)
    with pytest.raises(SearchSpaceError, match="count: input_shape must be that of a batch"):
        count(supernet, (1, 3))


def test_tables_name_their_candidates() -> None:
    space = spaces.NASBench201(cells=1, channels=2)
    for table in count(space.supernet(), (1, 3, 8, 8)).values():
        assert table.candidates == dict(space.candidates)

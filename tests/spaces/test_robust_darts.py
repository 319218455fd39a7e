"""The spaces S1 to S4: golden sizes, rows of unlike candidates, noise, the one-hot supernet."""

import collections
import json

import pytest
import torch

from pyfast_nas.errors import GenotypeError
from pyfast_nas.nn import GateOutput
from pyfast_nas.nn.primitives import Noise
from pyfast_nas.spaces import S1, S2, S3, S4, SPACES, Genotype, GenotypeEdge
from pyfast_nas.spaces.cell_space import CellSpace
from pyfast_nas.spaces.choices import choices_of
from pyfast_nas.spaces.two_inputs import count_cells, draw_pairs, strongest_pairs

ALL = (S1, S2, S3, S4)
SHORT = {
    "sk": "skip_connect",
    "mp": "max_pool_3x3",
    "ap": "avg_pool_3x3",
    "s3": "sep_conv_3x3",
    "d3": "dil_conv_3x3",
    "d5": "dil_conv_5x5",
}
# As the paper's figure has them, edge by edge.
NORMAL = "sk,d3 sk,d5 sk,d5 sk,s3 sk,d3 mp,sk sk,s3 sk,s3 sk,d3 sk,s3 mp,sk sk,d3 d3,d5 d3,d5"
REDUCE = "mp,ap mp,d3 mp,ap mp,ap sk,d5 mp,ap mp,s3 sk,d3 sk,d5 mp,ap mp,ap sk,d5 sk,d5 sk,d5"


def long_names(text):
    return tuple(tuple(SHORT[name] for name in row.split(",")) for row in text.split())


@pytest.fixture(params=ALL, ids=lambda space: space.name)
def space(request):
    return request.param(channels=4, cells=4, image_size=16)


@pytest.mark.parametrize(
    ("space", "size"), [(S1, 405_146), (S2, 665_466), (S3, 665_466), (S4, 624_506)]
)
def test_search_network_golden_size(space, size):
    """Check S1, sizes: weights of the supernet of 16 channels and 8 cells."""
    net = space().supernet()
    assert sum(p.numel() for p in net.weight_parameters()) == size
    columns = max(map(len, space().candidates["normal"]))
    assert [list(table.shape) for table in net.arch_parameters()] == [[14, columns]] * 2


def test_rows_of_s1():
    assert S1().candidates == {"normal": long_names(NORMAL), "reduce": long_names(REDUCE)}


def test_architectures_are_as_many_in_all():
    one_cell = 2**8 * 1 * 3 * 6 * 10  # two operations on each of eight edges, pairs of sources
    assert [space().size() for space in ALL] == [one_cell**2] * 4


def test_random_genotypes_keep_to_their_edges(space):
    generator = torch.Generator().manual_seed(0)
    seen = collections.defaultdict(set)
    for _ in range(60):
        genotype = space.random_genotype(generator)
        space.check(genotype)
        assert genotype.space == space.name
        for table, edges in genotype.cells.items():
            for edge in edges:
                row = sum(range(2, edge.target)) + edge.source
                seen[table, row].add(edge.op)
    for table, rows in space.candidates.items():
        for row, names in enumerate(rows):
            assert seen[table, row] == set(names) - {"none"}


def test_an_operation_of_another_edge_is_refused():
    genotype = S1().derive({table: torch.zeros(14, 2) for table in ("normal", "reduce")})
    edges = list(genotype.cells["normal"])
    assert edges[0] == GenotypeEdge(0, 2, "skip_connect")
    edges[0] = GenotypeEdge(0, 2, "dil_conv_5x5")  # of edge 1 -> 2
    wrong = Genotype("s1", dict(genotype.cells) | {"normal": edges}, genotype.outputs)
    words = r"S1: cells.normal\[0\].op must be one of skip_connect, dil_conv_3x3, got 'dil_conv_5x5"
    with pytest.raises(GenotypeError, match=words):
        S1().check(wrong)
    with pytest.raises(GenotypeError, match="S2: space must be 's2', got 's1'"):
        S2().check(genotype)


@pytest.mark.promise("S11")
def test_ties_go_to_the_lowest_index(space):
    """Check S2, derivation: the first two edges of every node, the first candidate but `none`."""
    columns = max(map(len, space.candidates["normal"]))
    genotype = space.derive({table: torch.zeros(14, columns) for table in ("normal", "reduce")})
    for table, rows in space.candidates.items():
        want = []
        for node, first in zip((2, 3, 4, 5), (0, 2, 5, 9), strict=True):
            for source in (0, 1):
                op = next(name for name in rows[first + source] if name != "none")
                want.append(GenotypeEdge(source, node, op))
        assert genotype.cells[table] == tuple(want)


def test_derivation_by_hand():
    normal = torch.zeros(14, 2)
    normal[2, 1] = 3.0  # 0 -> 3: dil_conv_5x5
    normal[4, 1] = 2.0  # 2 -> 3: dil_conv_3x3
    normal[5, 1] = 1.0  # 0 -> 4: here the skip connection is the second candidate
    normal[13, 0] = -4.0  # 4 -> 5: dil_conv_5x5 by default of the other
    genotype = S1().derive({"normal": normal, "reduce": torch.zeros(14, 2)})
    pairs = [(edge.op, edge.source) for edge in genotype.cells["normal"]]
    assert pairs[2:4] == [("dil_conv_5x5", 0), ("dil_conv_3x3", 2)]
    assert pairs[4] == ("skip_connect", 0)
    assert pairs[6] == ("dil_conv_5x5", 4)


def test_rows_that_none_dominates():
    """`none` counts in the softmax, so it weakens its edge, and is chosen nowhere."""
    normal = torch.zeros(14, 3)
    normal[:, 0] = 30.0
    normal[9:14, 0] = torch.tensor([30.0, 30.0, 29.0, 30.0, 28.0])
    normal[12, 2] = 5.0
    genotype = S3().derive({"normal": normal, "reduce": torch.zeros(14, 3)})
    edges = genotype.cells["normal"]
    assert all(edge.op != "none" for edge in edges)
    assert [(edge.op, edge.source) for edge in edges[-2:]] == [
        ("sep_conv_3x3", 3),
        ("skip_connect", 4),
    ]
    assert [(edge.op, edge.source) for edge in edges[2:4]] == [("skip_connect", k) for k in (0, 1)]


def test_none_is_looked_up_among_the_candidates_of_the_edge():
    """With those of the row whose index is the source, `none` would win edge 1 -> 3."""
    names = [["none", "a"], ["b", "none"], ["a", "b"], ["none", "b"], ["b", "a", "none"]]
    rows = [[0.2, 0.8], [0.6, 0.4], [0.3, 0.7], [0.9, 0.1], [0.1, 0.2, 0.7]]
    assert strongest_pairs(rows, names) == [("a", 0), ("b", 1), ("b", 0), ("a", 2)]


def test_unlike_rows_are_drawn_uniformly():
    """Chi-square over all 7 * 29 cells, bound at p = 1e-6."""
    names = [["none", "a"], list("abcdefg"), ["a"], ["none", "b", "c"], list("abcdefghi")]
    assert count_cells(names) == 7 * (2 + 9 + 18)
    generator = torch.Generator().manual_seed(0)
    draws = 203 * 25
    found = collections.Counter(tuple(draw_pairs(names, generator)) for _ in range(draws))
    assert len(found) == 203
    assert sum((n - 25) ** 2 / 25 for n in found.values()) < 309.9  # 202 degrees of freedom


@pytest.mark.parametrize("track", [False, True])
def test_one_hot_supernet_equals_the_derived_network(space, track, monkeypatch):
    """Check S3, shapes and networks: agreement to 1e-6, trained and evaluated."""

    # Both draw their noise, and not as often: here it is the same everywhere.
    def same(self, x):
        return torch.full_like(x[:, :, :: self.stride, :: self.stride], 0.5)

    monkeypatch.setattr(Noise, "forward", same)
    space = type(space)(channels=4, cells=4, image_size=16, track_running_stats=track)
    net = space.supernet(torch.Generator().manual_seed(0)).double()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for seed in range(2):
        genotype = space.random_genotype(torch.Generator().manual_seed(seed))
        flags = choices_of(genotype, space.candidates)
        gates = {table: GateOutput(rows.double()) for table, rows in flags.items()}
        derived = space.inherit(genotype, net)
        assert space.genotype_of(derived) == genotype
        for training in (True, False):
            got, want = net.train(training)(x, gates), derived.train(training)(x)
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_config_round_trip(space):
    config = json.loads(json.dumps(space.to_config()))
    again = SPACES[config.pop("name")](**config)
    assert again == space and hash(again) == hash(space) and isinstance(again, CellSpace)


def test_the_same_options_make_other_spaces():
    assert len({kind() for kind in ALL}) == 4


class TestNoise:
    def test_law(self):
        torch.manual_seed(0)
        y = Noise()(torch.zeros(8, 16, 32, 32))
        n = y.numel()
        assert abs(y.mean()) < 5 / n**0.5
        assert abs(y.var() - 1) < 5 * (2 / n) ** 0.5
        assert abs((y**4).mean() - 3) < 5 * (96 / n) ** 0.5

    @pytest.mark.parametrize(("stride", "size"), [(1, (5, 6)), (2, (3, 3))])
    def test_values_of_the_input_do_not_count(self, stride, size):
        x = torch.full((2, 3, 5, 6), float("inf"), requires_grad=True)
        outputs = []
        for value in (x, torch.zeros(2, 3, 5, 6), x.contiguous(memory_format=torch.channels_last)):
            torch.manual_seed(0)
            outputs.append(Noise(stride)(value))
        assert outputs[0].shape == (2, 3, *size)
        assert all(torch.equal(outputs[0], y) and not y.requires_grad for y in outputs)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_dtype(self, dtype):
        assert Noise()(torch.zeros(2, dtype=dtype)).dtype == dtype

    def test_fresh_in_every_call(self):
        x = torch.zeros(1, 1, 4, 4)
        for training in (True, False):
            noise = Noise().train(training)
            assert not torch.equal(noise(x), noise(x))

    def test_no_gradient_passes(self):
        """Of a cell of noise alone nothing reaches the input, and the weights of the mix learn."""
        net = S4(channels=4, cells=2, image_size=8).supernet(torch.Generator().manual_seed(0))
        weights = {t: torch.ones(14, 1, requires_grad=True) for t in ("normal", "reduce")}
        gates = {t: GateOutput(rows, ((0,),) * 14) for t, rows in weights.items()}
        x = torch.randn(2, 3, 8, 8, requires_grad=True)
        net(x, gates).square().sum().backward()
        assert x.grad is None
        # Every edge of the last cell leads to the loss, that of a cell before it nowhere.
        assert weights["reduce"].grad.abs().min() > 0

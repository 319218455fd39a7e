"""The toy space: its sixteen networks, its known optimum, and a search that finds it."""

import pytest
import torch
import torch.nn.functional as F

from pyfast_nas.errors import DivergenceError, GenotypeError, SearchSpaceError
from pyfast_nas.nn import GumbelTopK
from pyfast_nas.spaces import DARTS_V1, Genotype, GenotypeEdge, Toy
from pyfast_nas.spaces.toy import TOY_OPERATIONS


def batch(generator, size=64):
    labels = torch.randint(2, (size,), generator=generator)
    shift = 0.5 * (2.0 * labels - 1)[:, None]
    return shift + torch.randn(size, 8, generator=generator), labels


def test_sixteen_architectures():
    genotypes = list(Toy().enumerate())
    assert len(genotypes) == len(set(genotypes)) == Toy().size() == 16
    assert Toy().optimum() in genotypes
    for genotype in genotypes:
        assert Genotype.from_json(genotype.to_json()) == genotype
        assert Toy().build(genotype)(torch.randn(6, 8)).shape == (6, 2)


def test_loss_is_softplus_of_the_score():
    net = Toy().build(Toy().optimum())
    x, labels = batch(torch.Generator().manual_seed(0))
    score = 2 * x @ net.score.weight
    want = F.softplus(-(2.0 * labels - 1) * score).mean()
    torch.testing.assert_close(F.cross_entropy(net(x), labels), want)
    assert torch.equal(net.score.weight, torch.full((8,), 0.1))


def test_candidates():
    x = torch.arange(16.0).reshape(2, 8)
    edge = Toy().supernet().edges[0]
    identity, reverse, noise, faint = (edge.candidate(k) for k in range(4))
    assert edge.names == TOY_OPERATIONS
    assert identity(x) is x
    assert torch.equal(reverse(x), x[[1, 0]])
    torch.manual_seed(0)
    first, second = noise(x), noise(x)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(faint(x), 0.3 * x + first)


def test_supernet_mixes_both_rows():
    net = Toy().supernet(torch.Generator().manual_seed(0))
    assert net.candidates == {"cell": (TOY_OPERATIONS,) * 2}
    assert net.alphas["cell"].shape == (2, 4)
    x, labels = batch(torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    loss = F.cross_entropy(net(x), labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert net.alphas["cell"].grad.abs().min() > 0
    assert [p.shape for p in net.weight_parameters()] == [(8,)]


def test_single_path_equals_the_built_network():
    """Each sub-graph of a draw is the network of its genotype, noise apart."""
    space = Toy()
    net = space.supernet()
    x = torch.randn(6, 8)
    gate = GumbelTopK(4)(net.alphas["cell"], torch.tensor([0, 0]))
    for part in gate.split():
        chosen = [TOY_OPERATIONS[row[0]] for row in part.active]
        edges = tuple(GenotypeEdge(0, row + 1, op) for row, op in enumerate(chosen))
        built = space.build(Genotype("toy", {"cell": edges}, {"cell": (1, 2)}))
        torch.manual_seed(3)
        got = net(x, {"cell": part})
        torch.manual_seed(3)
        assert torch.equal(got, built(x))


def test_the_optimum_is_the_best():
    """Trained alike, identity in both rows has the lowest loss of all sixteen."""
    losses = {}
    for genotype in Toy().enumerate():
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        net = Toy().build(genotype)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(60):
            x, labels = batch(generator)
            optimizer.zero_grad()
            F.cross_entropy(net(x), labels).backward()
            optimizer.step()
        with torch.no_grad():
            x, labels = batch(generator, size=4000)
            losses[genotype] = F.cross_entropy(net(x), labels).item()
    assert min(losses, key=losses.get) == Toy().optimum()


def test_derive():
    space = Toy()
    alphas = torch.tensor([[0.0, 1, 0, 0], [0, 0, 2, 2]])
    assert [e.op for e in space.derive({"cell": alphas}).cells["cell"]] == ["reversed", "noise"]
    assert space.derive({"cell": torch.zeros(2, 4)}) == space.optimum()
    with pytest.raises(DivergenceError, match="never taken from NaN"):
        space.derive({"cell": torch.full((2, 4), float("nan"))})


def test_random_genotype():
    drawn = {Toy().random_genotype(torch.Generator().manual_seed(seed)) for seed in range(200)}
    assert drawn == set(Toy().enumerate())


def test_config_and_data():
    assert Toy().to_config() == {"name": "toy"}
    assert Toy().with_data(8, 2, 1) == Toy()
    with pytest.raises(SearchSpaceError, match="num_classes must be 2, got 10"):
        Toy().with_data(1, 10, 8)


@pytest.mark.parametrize(
    ("genotype", "words"),
    [
        (lambda: DARTS_V1, "space must be 'toy'"),
        (
            lambda: Genotype(
                "toy",
                {"cell": (GenotypeEdge(0, 1, "identity"), GenotypeEdge(0, 2, "skip"))},
                {"cell": (1, 2)},
            ),
            r"cells.cell\[1\].op must be one of identity, reversed, noise, faint, got 'skip'",
        ),
        (
            lambda: Genotype("toy", {"cell": (GenotypeEdge(0, 1, "noise"),)}, {"cell": (1,)}),
            r"must be the edges \[\(0, 1\), \(0, 2\)\]",
        ),
    ],
)
def test_refusals(genotype, words):
    with pytest.raises(GenotypeError, match=words):
        Toy().build(genotype())

"""The baseline: uniform training, scoring with shared weights, a fair choice."""

import math

import pytest
import torch
import torch.nn.functional as F

from pyfast_nas import spaces
from pyfast_nas.algorithms import RandomSearch
from pyfast_nas.algorithms.random_search import genotype_gates
from pyfast_nas.errors import DivergenceError, GenotypeError


def test_training_draws_every_candidate_of_every_row_alike(start, tiny_batch, monkeypatch):
    algorithm = start(RandomSearch())
    drawn = []
    evaluate = algorithm._evaluate
    monkeypatch.setattr(
        algorithm,
        "_evaluate",
        lambda split, batch, gates: drawn.append(gates) or evaluate(split, batch, gates),
    )
    for _ in range(600):
        algorithm.step(tiny_batch(0), tiny_batch(1))
    picks = [tuple(row[0] for row in gates["cell"].active) for gates in drawn]
    counts = torch.zeros(3, 2)
    for a, b in picks:
        counts[a, b] += 1
    # Uniform over all six pairs: rows are uniform and independent. Level 1e-6, 5 degrees.
    assert ((counts - 100) ** 2 / 100).sum() < 35.89


def test_only_the_drawn_candidates_get_gradients(start, tiny_batch):
    algorithm = start(RandomSearch())
    algorithm.step(tiny_batch(0), tiny_batch(1))
    for edge in algorithm.supernet.edges:
        trained = [
            any(p.grad is not None for p in edge.candidate(k).parameters())
            for k in range(edge.num_ops)
        ]
        assert sum(trained) == 1


class TestGates:
    def test_of_a_cell_space_run_the_kept_edges_alone(self, small_darts, image_batch):
        torch.manual_seed(0)
        supernet = small_darts.supernet()
        genotype = small_darts.from_pairs(
            normal=[
                ("skip_connect", 0),
                ("sep_conv_3x3", 1),
                ("max_pool_3x3", 0),
                ("dil_conv_5x5", 2),
            ],
            reduce=[
                ("avg_pool_3x3", 0),
                ("skip_connect", 1),
                ("sep_conv_5x5", 1),
                ("skip_connect", 2),
            ],
        )
        gates = genotype_gates(genotype, supernet)
        # Rows: (0, 2) (1, 2) (0, 3) (1, 3) (2, 3); candidates in index order, `none` is 0.
        assert gates["normal"].active == ((3,), (4,), (1,), (0,), (7,))
        assert gates["normal"].weights.flatten().tolist() == [1, 1, 1, 0, 1]
        assert gates["reduce"].active == ((2,), (3,), (0,), (5,), (3,))
        inputs, _ = image_batch(0)
        assert supernet(inputs, gates).shape == (4, 3)

    def test_without_none_left_out_edges_weigh_nothing(self, image_batch):
        space = spaces.DARTS(
            channels=4,
            cells=2,
            nodes=2,
            in_channels=1,
            num_classes=3,
            image_size=8,
            operations=("skip_connect", "sep_conv_3x3"),
        )
        genotype = space.random_genotype(torch.Generator().manual_seed(0))
        supernet = space.supernet()
        gates = genotype_gates(genotype, supernet)
        assert gates["normal"].weights.sum() == 4
        inputs, _ = image_batch(0)
        before = supernet(inputs, gates)
        (absent,) = (k for k in range(5) if gates["normal"].weights[k] == 0)
        with torch.no_grad():
            for cell, table in zip(supernet.cells, supernet.tables, strict=True):
                if table == "normal":
                    for p in cell.edges[absent].parameters():
                        p.add_(1.0)
        assert torch.equal(supernet(inputs, gates), before)

    def test_agree_with_the_derived_network_on_the_toy(self):
        space = spaces.Toy()
        supernet, x = space.supernet(), torch.randn(6, 8)
        for genotype in space.enumerate():
            network = space.build(genotype)
            torch.manual_seed(1)
            want = network(x)
            torch.manual_seed(1)
            got = supernet(x, genotype_gates(genotype, supernet))
            torch.testing.assert_close(got, want)

    def test_of_another_space_are_refused(self, small_darts, tiny_space):
        supernet = small_darts.supernet()
        genotype = spaces.DARTS(nodes=3).random_genotype(torch.Generator().manual_seed(0))
        with pytest.raises(GenotypeError, match="must be edges of a cell with 5 rows"):
            genotype_gates(genotype, supernet)
        genotype = small_darts.random_genotype(torch.Generator().manual_seed(0))
        narrow = spaces.DARTS(nodes=2, operations=("none", "sep_conv_7x7"), channels=4, cells=1)
        with pytest.raises(GenotypeError, match="must be one of none, sep_conv_7x7"):
            genotype_gates(genotype, narrow.supernet())


class TestDerive:
    def trained(self, start, toy_batch, **options):
        algorithm = start(RandomSearch(**options), spaces.Toy(), steps_per_epoch=10)
        for _ in range(10):
            algorithm.step(toy_batch(), toy_batch())
        return algorithm

    def test_is_repeatable_and_leaves_no_trace(self, start, toy_batch, snapshot):
        algorithm = self.trained(start, toy_batch)
        before = snapshot(algorithm, alphas=True)
        generator = algorithm.generator.get_state()
        assert algorithm.derive() == algorithm.derive()
        assert snapshot(algorithm, alphas=True) == before
        assert torch.equal(algorithm.generator.get_state(), generator)

    def test_takes_the_lowest_loss_of_the_sample(self, start, toy_batch, monkeypatch):
        algorithm = self.trained(start, toy_batch, samples=12, finalists=3, score_batches=5)
        scored = []

        def score(genotype, batches):
            scored.append((genotype, len(batches)))
            return torch.tensor(float(sum(map(ord, genotype.hash))))

        monkeypatch.setattr(algorithm, "_score", score)
        best = algorithm.derive()
        assert [count for _, count in scored] == [1] * 12 + [5] * 3
        key = {genotype: sum(map(ord, genotype.hash)) for genotype, _ in scored}
        assert key[best] == min(key.values())

    def test_the_first_of_equals_wins(self, start, toy_batch, monkeypatch):
        algorithm = self.trained(start, toy_batch, samples=5)
        order = []
        monkeypatch.setattr(
            algorithm, "_score", lambda genotype, _: order.append(genotype) or torch.tensor(1.0)
        )
        assert algorithm.derive() == order[0]

    def test_keeps_the_last_batches_only(self, start, toy_batch):
        algorithm = self.trained(start, toy_batch, score_batches=3)
        last = toy_batch()
        algorithm.step(toy_batch(), last)
        assert len(algorithm.kept) == 3
        assert algorithm.kept[-1][0] is last[0]

    def test_losses_that_are_not_finite_do_not_win(self, start, toy_batch, monkeypatch):
        algorithm = self.trained(start, toy_batch, samples=4)
        values = iter([math.nan, 3.0, math.inf, 2.0, 5.0, 4.0])
        seen = []

        def score(genotype, _):
            seen.append(genotype)
            return torch.tensor(next(values))

        monkeypatch.setattr(algorithm, "_score", score)
        best = algorithm.derive()
        # Second round: 3.0 -> 4.0 and 2.0 -> 5.0, in order of the first.
        assert best == seen[1]
        monkeypatch.setattr(algorithm, "_score", lambda *_: torch.tensor(math.nan))
        with pytest.raises(DivergenceError, match="validation loss must be finite, got nan"):
            algorithm.derive()

    def test_score_is_the_loss_of_the_architecture_on_shared_weights(self, start, toy_batch):
        algorithm = self.trained(start, toy_batch)
        optimum = spaces.Toy().optimum()
        inputs, labels = toy_batch()
        score = algorithm._score(optimum, [(inputs, labels)])
        weight = algorithm.supernet.score.weight.detach()
        want = F.softplus(-(2 * labels - 1) * (2 * inputs @ weight)).mean()
        torch.testing.assert_close(score, want)

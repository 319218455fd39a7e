"""ProxylessNAS against its equations: gates, gradients, pairs, costs, rewards, schedules."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyfast_nas import _ext, ops, spaces
from pyfast_nas.algorithms import ProxylessNAS
from pyfast_nas.algorithms.binary_gates import hold_the_others, pair_gates, path_gates
from pyfast_nas.algorithms.sub_graphs import SubGraphs, draw_sub_graphs
from pyfast_nas.costs import CostTable
from pyfast_nas.errors import ConfigError, DivergenceError
from pyfast_nas.nn import GateOutput, MixedOp
from pyfast_nas.nn.mixed_op import mix_edges

AT_ONCE = {"alpha_interval": 1, "alpha_warmup": 0.0, "alpha_rest": 0}
FORMS = ("full", "full_v2", "two", "reinforce")
# The specification's tolerance in double precision.
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def small_bench():
    return spaces.NASBench201(
        channels=4,
        cells=1,
        num_classes=3,
        in_channels=1,
        image_size=8,
        track_running_stats=True,
    )


@pytest.fixture(params=["darts", "nas-bench-201"])
def space(request, small_darts, small_bench):
    return {"darts": small_darts, "nas-bench-201": small_bench}[request.param]


def wide(algorithm, start, space, none=0.0, **run):
    """Prepare in double precision, with logits that differ, that of `none` by as much."""
    algorithm = start(algorithm, space, **run)
    algorithm.supernet.double()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for alpha in algorithm.supernet.alphas.values():
            alpha.copy_(0.5 * torch.randn(alpha.shape, generator=draw))
            alpha[:, 0] += none
    algorithm.prepare(
        algorithm.supernet,
        space=space,
        epochs=algorithm.epochs,
        steps_per_epoch=algorithm.steps_per_epoch,
        generator=torch.Generator().manual_seed(0),
    )
    return algorithm


def doubled(batch):
    return batch[0].double(), batch[1]


def gradients_of(algorithm, monkeypatch):
    """Keep the architecture gradients of every step."""
    kept = []
    update = algorithm._update_alphas

    def spy(gradients):
        kept.append(torch.cat([gradient.clone() for gradient in gradients]))
        return update(gradients)

    monkeypatch.setattr(algorithm, "_update_alphas", spy)
    return kept


def drawn_paths(alphas, seed, count):
    keys = alphas + ops.gumbel_noise(seed, *alphas.shape)
    return keys.argsort(dim=1, descending=True)[:, :count]


def gate_gradients(supernet, batch, picks):
    """Derivatives by the weights of all candidates, in plain operations, and the loss."""
    supernet = copy.deepcopy(supernet)
    weights = F.one_hot(picks, max(a.shape[1] for a in supernet.alphas.values())).double()
    weights.requires_grad_()
    gates, row = {}, 0
    for table, alpha in supernet.alphas.items():
        gates[table] = GateOutput(weights[row : row + len(alpha)])
        row += len(alpha)
    with _ext.use("reference"):
        loss = F.cross_entropy(supernet(batch[0], gates), batch[1])
        return torch.autograd.grad(loss, weights)[0], loss.detach()


def through_softmax(p, c):
    """(2.1): the gradient of logits from that of their probabilities."""
    return p * (c - (p * c).sum(1, keepdim=True))


class TestFullGradient:
    @pytest.mark.parametrize("form", ["full", "full_v2"])
    def test_formula(self, form, space, start, image_batch, monkeypatch):
        algorithm = wide(ProxylessNAS(gradient=form, **AT_ONCE), start, space, none=1.5)
        kept = gradients_of(algorithm, monkeypatch)
        alphas = torch.cat(list(algorithm.alphas.values()))
        picks = drawn_paths(alphas, ops.draw_seed(torch.Generator().manual_seed(0)), 1)[:, 0]
        valid = doubled(image_batch(1))
        c, _ = gate_gradients(algorithm.supernet, valid, picks)
        algorithm.step(doubled(image_batch(0)), valid)
        want = through_softmax(alphas.softmax(1), c)
        assert want.abs().max() > 1e-4
        torch.testing.assert_close(kept[0], want, rtol=1e-9, atol=1e-12)
        assert (want[picks == 0].abs().amax(1) > 1e-7).any(), "also where `none` is active"

    def test_g4_both_forms_are_equal(self, space, start, image_batch, monkeypatch):
        """G4: the same gradients of logits and weights, and the same search, to 1e-12."""
        found = []
        for form in ("full", "full_v2"):
            algorithm = wide(ProxylessNAS(gradient=form, **AT_ONCE), start, space)
            kept = gradients_of(algorithm, monkeypatch)
            metrics = [
                algorithm.step(doubled(image_batch(step)), doubled(image_batch(step + 9)))
                for step in range(3)
            ]
            found.append((kept, metrics, list(algorithm.supernet.state_dict().values())))
        torch.testing.assert_close(found[0], found[1], **EXACT)

    def test_g4_gradients_of_weights(self, space, start, image_batch):
        algorithm = wide(ProxylessNAS(**AT_ONCE), start, space)
        drawn = algorithm._draw(algorithm._logits(), torch.tensor([5, 0]), False)
        images, labels = doubled(image_batch(1))
        found = []
        for recompute in (False, True):
            supernet = copy.deepcopy(algorithm.supernet)
            binary = path_gates(supernet.logits(), drawn, recompute=recompute)
            F.cross_entropy(supernet(images, binary.gates), labels).backward()
            found.append({n: p.grad for n, p in supernet.named_parameters()})
        for name, full in found[0].items():
            again = found[1][name]
            # What did not run has no gradient where it runs again only; elsewhere zero.
            again = torch.zeros_like(full) if again is None else again
            torch.testing.assert_close(again, full, **EXACT)
        assert any(gradient is None for gradient in found[1].values())

    @pytest.mark.parametrize("recompute", [False, True])
    @pytest.mark.parametrize("linear", [True, False])
    def test_exact_where_the_loss_is_linear(self, linear, recompute):
        """(2.1) is the gradient of the expected loss, whatever ran; otherwise it is biased."""
        draw = torch.Generator().manual_seed(0)
        x, v = (torch.randn(5, 4, generator=draw, dtype=torch.float64) for _ in range(2))
        torch.manual_seed(0)
        edge = MixedOp([nn.Linear(4, 4).double() for _ in range(3)])
        logits = torch.tensor([[0.3, -0.7, 1.1]], dtype=torch.float64, requires_grad=True)

        def loss(y):
            return (y * v).sum() if linear else (y * v).sum().square()

        each = torch.stack([loss(edge.candidate(k)(x)).detach() for k in range(3)])
        (want,) = torch.autograd.grad((logits.softmax(1)[0] * each).sum(), logits)
        errors = []
        for pick in range(3):
            indices = torch.tensor([[pick]])
            drawn = SubGraphs(logits.detach(), indices, indices * 0.0, indices, {"cell": 1})
            binary = path_gates({"cell": logits}, drawn, recompute=recompute)
            y = mix_edges([edge], [x], binary.gates["cell"])
            assert torch.equal(y, edge.candidate(pick)(x)) or not recompute
            (got,) = torch.autograd.grad(loss(y), logits)
            errors.append(float((got - want).abs().max()))
        assert (max(errors) < 1e-12) == linear

    @pytest.mark.parametrize("form", ["full", "full_v2"])
    def test_what_is_not_finite_ends_the_search(self, form, start, small_darts, image_batch):
        algorithm = start(ProxylessNAS(gradient=form, **AT_ONCE), small_darts)
        with torch.no_grad():
            for edge in algorithm.supernet.cells[0].edges:
                for parameter in edge.candidates["sep_conv_3x3"].parameters():
                    parameter.fill_(torch.nan)
        with pytest.raises(DivergenceError, match=r"alphas\['normal'\] must be finite, got nan"):
            for step in range(2):
                algorithm.step(image_batch(step), image_batch(step + 9))


class Scale(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return x * self.value


def given(indices, logits, on_device=False):
    """Sub-graphs as if they had been drawn."""
    return SubGraphs(
        logits.detach(), indices, torch.zeros(indices.shape), indices, {"cell": len(indices)},
        on_device,
    )  # fmt: skip


class TestPairs:
    LOGITS = (0.3, -0.2, 0.1, 0.5, 0.0, -0.4, 0.2)

    @pytest.mark.parametrize("on_device", [False, True])
    def test_golden_step(self, on_device):
        """The specification's example, with plain SGD."""
        logits = torch.tensor([self.LOGITS], dtype=torch.float64, requires_grad=True)
        edge = MixedOp([Scale({3: 0.8, 1: -0.6}.get(k, math.nan)) for k in range(7)])
        drawn = given(torch.tensor([[3, 1]]), logits, on_device)
        seed = next(
            seed
            for seed in (torch.tensor([n, 0]) for n in range(99))
            if ops.philox_uniform(seed, 1, 1, stream=1) < 0.66
        )
        binary = pair_gates({"cell": logits}, drawn, seed)
        p = binary.probabilities["cell"]
        assert p[0, [3, 1]].tolist() == pytest.approx([0.668187772, 0.331812228], abs=1e-8)
        assert (p[0, [0, 2, 4, 5, 6]] == 0).all()
        gate = binary.gates["cell"]
        assert (gate.active is None) == on_device
        y = mix_edges([edge], [torch.ones((), dtype=torch.float64)], gate)
        assert y.item() == 0.8
        (gradient,) = torch.autograd.grad(y, logits)
        want = [0.0, -0.310398023, 0.0, 0.310398023, 0.0, 0.0, 0.0]
        assert gradient[0].tolist() == pytest.approx(want, abs=1e-8)
        before = {"cell": logits.detach().clone()}
        after = {"cell": logits.detach() - 0.1 * gradient}
        assert after["cell"][0, [3, 1]].tolist() == pytest.approx(
            [0.468960198, -0.168960198], abs=1e-8
        )
        hold_the_others(after, before, drawn.indices)
        assert after["cell"][0, [3, 1]].tolist() == pytest.approx(
            [0.478971073, -0.158949322], abs=1e-8
        )
        moved = after["cell"].softmax(1) - before["cell"].softmax(1)
        assert moved[0, [0, 2, 4, 5, 6]].abs().max() < 1e-12
        assert abs(moved[0, [1, 3]].sum()) < 1e-12 < moved[0, [1, 3]].abs().min()

    @pytest.mark.parametrize("options", [{}, {"alpha_betas": (0.9, 0.999), "alpha_decay": 0.1}])
    def test_probabilities_of_the_others_stay(self, options, space, start, image_batch):
        """Also under an Adam that would move what it has moved before."""
        options = AT_ONCE | {"gradient": "two", "alpha_lr": 0.1} | options
        algorithm = wide(ProxylessNAS(**options), start, space)
        generator = torch.Generator().manual_seed(0)
        for step in range(4):
            before = algorithm.probabilities()
            alphas = torch.cat(list(algorithm.alphas.values()))
            pairs = drawn_paths(alphas, ops.draw_seed(generator), 2)
            algorithm.step(doubled(image_batch(step)), doubled(image_batch(step + 9)))
            moved = torch.cat([now - before[t] for t, now in algorithm.probabilities().items()])
            inside = moved.gather(1, pairs)
            assert moved.scatter(1, pairs, 0.0).abs().max() < 1e-12
            assert inside.sum(1).abs().max() < 1e-12
            assert (inside.abs() > 1e-3).any()

    def test_formula(self, space, start, image_batch, monkeypatch):
        algorithm = wide(ProxylessNAS(gradient="two", **AT_ONCE), start, space)
        kept = gradients_of(algorithm, monkeypatch)
        alphas = torch.cat(list(algorithm.alphas.values()))
        seed = ops.draw_seed(torch.Generator().manual_seed(0))
        pairs = drawn_paths(alphas, seed, 2)
        q = alphas.gather(1, pairs).softmax(1)
        first = ops.philox_uniform(seed, len(pairs), 1, stream=1)[:, 0] < q[:, 0]
        active = torch.where(first, pairs[:, 0], pairs[:, 1])
        valid = doubled(image_batch(1))
        c, loss = gate_gradients(algorithm.supernet, valid, active)
        metrics = algorithm.step(doubled(image_batch(0)), valid)
        assert metrics["valid/loss"].item() == pytest.approx(loss.item(), rel=1e-10)
        want = torch.zeros_like(c).scatter(1, pairs, through_softmax(q, c.gather(1, pairs)))
        assert want.abs().max() > 1e-4
        torch.testing.assert_close(kept[0], want, rtol=1e-9, atol=1e-12)

    def test_the_active_one_follows_the_restricted_softmax(self):
        """Of each drawn pair, by a z-test; pairs themselves are those of the sampler's tests."""
        rows = 60_000
        logits = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log().expand(rows, 4)
        seed = torch.tensor([11, 0])
        drawn = draw_sub_graphs({"cell": logits}, 2, tau=1.0, seed=seed, on_device=True)
        gate = pair_gates({"cell": logits}, drawn, seed).gates["cell"]
        active = gate.weights.argmax(1)
        assert (gate.weights.sum(1) == 1).all() and (gate.selected.sum(1) == 2).all()
        for a in range(4):
            for b in range(4):
                here = (drawn.indices[:, 0] == a) & (drawn.indices[:, 1] == b)
                if not (count := int(here.sum())):
                    assert a == b
                    continue
                p = (4 - a) / (8 - a - b)
                share = float((active[here] == a).double().mean())
                # Level 1e-6 for each of twelve pairs.
                assert abs(share - p) < 5.3 * math.sqrt(p * (1 - p) / count), (a, b)

    def test_rows_of_one_candidate_are_refused(self, start):
        space = spaces.DARTS(
            channels=4, cells=1, nodes=1, image_size=8, operations=("sep_conv_3x3",)
        )
        with pytest.raises(ConfigError, match="must not be 'two' where a row has 1 candidate"):
            start(ProxylessNAS(gradient="two"), space)
        start(ProxylessNAS(), space)


class TestWhatRuns:
    def counted(self, algorithm):
        """Calls of every candidate since the start, by edge."""
        calls = {}
        for table, row, edge in algorithm.supernet.placed_edges():
            for index in range(edge.num_ops):
                key = (table, row, id(edge), index)
                calls[key] = 0

                def hook(*_, key=key):
                    calls[key] += 1

                edge.candidate(index).register_forward_hook(hook)
        return calls

    @pytest.mark.parametrize(
        ("form", "calls_of_rows"),
        [("full", {7}), ("full_v2", {7, 8}), ("two", {1, 2}), ("reinforce", {2, 3})],
    )
    def test_calls_of_an_architecture_step(
        self, form, calls_of_rows, start, small_darts, image_batch, monkeypatch
    ):
        """All of eight candidates but none; the active one and all again; two; one a sample."""
        samples = {"samples": 3} if form == "reinforce" else {}
        algorithm = start(ProxylessNAS(gradient=form, **AT_ONCE, **samples), small_darts)
        monkeypatch.setattr(algorithm, "_weight_step", lambda *_: {})
        with torch.no_grad():  # `none` in few rows only
            for alpha in algorithm.supernet.alphas.values():
                alpha[:, 0] = -2.0
        calls = self.counted(algorithm)
        algorithm.step(image_batch(0), image_batch(1))
        edges = {}
        for (table, row, edge, _), count in calls.items():
            edges[table, row, edge] = edges.get((table, row, edge), 0) + count
        assert set(edges.values()) <= calls_of_rows | ({3, 2, 1} if form == "reinforce" else set())
        assert max(edges.values()) == max(calls_of_rows)

    @pytest.mark.parametrize("form", FORMS)
    def test_weights_that_did_not_run_have_no_gradient(self, form, start, space, image_batch):
        samples = {"samples": 2} if form == "reinforce" else {}
        algorithm = start(ProxylessNAS(gradient=form, **AT_ONCE, **samples), space)
        generator = torch.Generator().manual_seed(0)
        for step in range(2):
            seed = ops.draw_seed(generator) + torch.tensor([0, 1])
            moves = algorithm._architecture_step

            def then_read(*arguments, moves=moves):
                found = moves(*arguments)
                then_read.alphas = torch.cat(list(algorithm.alphas.values()))
                return found

            algorithm._architecture_step = then_read
            before = {n: p.detach().clone() for n, p in algorithm.supernet.named_parameters()}
            algorithm.step(image_batch(step), image_batch(step + 9))
            algorithm._architecture_step = moves
            picks = drawn_paths(then_read.alphas, seed, 1)[:, 0].tolist()
            names = {id(p): n for n, p in algorithm.supernet.named_parameters()}
            places = [
                (t, row) for t, a in algorithm.supernet.alphas.items() for row in range(len(a))
            ]
            seen = set()
            for table, row, edge in algorithm.supernet.placed_edges():
                for index in range(edge.num_ops):
                    ran = picks[places.index((table, row))] == index
                    for p in edge.candidate(index).parameters():
                        assert (p.grad is not None) == ran
                        assert torch.equal(p, before[names[id(p)]]) != ran
                        seen.add(ran)
            assert seen == {True, False}


@pytest.fixture(params=["mul-log", "add-linear"])
def cost_form(request):
    return request.param


def table_of(space, fixed=40.0):
    """Costs that differ; `none` costs nothing."""
    draw = torch.Generator().manual_seed(4)
    rows = {}
    for table, names in space.candidates.items():
        rows[table] = 1 + 9 * torch.rand(len(names), len(names[0]), generator=draw).double()
        rows[table][:, names[0].index("none")] = 0.0
    return CostTable("ms", fixed, rows)


class TestCost:
    @pytest.mark.parametrize("form", ["full", "full_v2", "two"])
    def test_expected_cost_enters_the_loss(
        self, form, cost_form, space, start, image_batch, monkeypatch, tmp_path
    ):
        """Also in rows where `none` is active, whose gradient the authors' code drops."""
        table = table_of(space)
        table.save(tmp_path / "costs.json")
        options = {
            "mul-log": {"cost_scale": 0.3, "cost_exponent": 0.6},
            "add-linear": {"cost_weight": 0.7},
        }[cost_form]
        algorithm = ProxylessNAS(
            gradient=form,
            cost=str(tmp_path / "costs.json"),
            cost_form=cost_form,
            cost_reference=50.0,
            **AT_ONCE,
            **options,
        )
        algorithm = wide(algorithm, start, space, none=1.5)
        kept = gradients_of(algorithm, monkeypatch)
        alphas = torch.cat(list(algorithm.alphas.values()))
        seed = ops.draw_seed(torch.Generator().manual_seed(0))
        p = alphas.softmax(1)
        picks = drawn_paths(alphas, seed, 1)[:, 0]
        if form == "two":
            pairs = drawn_paths(alphas, seed, 2)
            q = alphas.gather(1, pairs).softmax(1)
            first = ops.philox_uniform(seed, len(pairs), 1, stream=1)[:, 0] < q[:, 0]
            picks = torch.where(first, pairs[:, 0], pairs[:, 1])
            p = torch.zeros_like(p).scatter(1, pairs, q)
        valid = doubled(image_batch(1))
        c, loss = gate_gradients(algorithm.supernet, valid, picks)
        metrics = algorithm.step(doubled(image_batch(0)), valid)
        costs = torch.cat(list(table.rows.values()))
        expected = 40.0 + float((p * costs).sum())
        assert metrics["alpha/cost"].item() == pytest.approx(expected, rel=1e-12)
        assert metrics["valid/loss"].item() == pytest.approx(loss.item(), rel=1e-10)
        if cost_form == "mul-log":
            logs = math.log(expected) / math.log(50.0)
            of_loss = 0.3 * logs**0.6
            of_cost = 0.3 * loss * 0.6 * logs**-0.4 / (expected * math.log(50.0))
        else:
            of_loss, of_cost = 1.0, 0.7 / 50.0
        want = through_softmax(p, of_loss * c + of_cost * costs)
        torch.testing.assert_close(kept[0], want, rtol=1e-9, atol=1e-12)
        without = through_softmax(p, of_loss * c)
        assert ((want - without)[picks == 0].abs().amax(1) > 1e-5).any()

    @pytest.mark.parametrize(
        ("fixed", "gradient", "words"),
        [
            (
                1.0,
                "full_v2",
                "greater than 1 .* its logarithm .* got 1 ms .* --cost-form add-linear",
            ),
            (-5.0, "two", "greater than 1 .* logarithm .* got -5 ms .* --cost-form add-linear"),
            (
                0.0,
                "reinforce",
                "greater than 0 .* power .* got 0 ms .* take another table",
            ),
        ],
    )
    def test_a_cost_that_may_have_no_logarithm_or_power_is_refused_before_the_search(
        self, fixed, gradient, words, start, small_bench, tmp_path
    ):
        """At first the expected cost is well above: the search would fail in the middle."""
        table_of(small_bench, fixed).save(tmp_path / "costs.json")
        cost = str(tmp_path / "costs.json")
        with pytest.raises(ConfigError, match=f"cost must be {words}"):
            start(ProxylessNAS(gradient=gradient, cost=cost), small_bench)
        table_of(small_bench, fixed + 0.01).save(cost)
        if fixed >= 0:
            start(ProxylessNAS(gradient=gradient, cost=cost), small_bench)
        start(ProxylessNAS(cost=cost, cost_form="add-linear"), small_bench)

    def test_a_reference_without_a_logarithm_is_refused(self, start, small_bench):
        with pytest.raises(ConfigError, match="cost_reference must be greater than 1 with"):
            start(ProxylessNAS(cost="parameters", cost_reference=0.5), small_bench)

    def test_padding_is_not_the_cheapest_candidate(self, start, tmp_path):
        """A row of two candidates: the zero beside them is none."""
        rows = {"cell": torch.tensor([[2.0, 3.0, 4.0], [1.0, 5.0, 0.0]])}
        CostTable("ms", -1.5, rows).save(tmp_path / "costs.json")
        start(ProxylessNAS(cost=str(tmp_path / "costs.json")))

    def test_a_heavy_cost_makes_the_network_light(self, start, small_bench, image_batch):
        options = {"cost_form": "add-linear", "cost_weight": 1e4, "cost_reference": 1e4}
        algorithm = ProxylessNAS(cost="parameters", alpha_lr=0.3, **AT_ONCE, **options)
        start(algorithm, small_bench)
        costs = [
            algorithm.step(image_batch(step), image_batch(step + 99))["alpha/cost"].item()
            for step in range(8)
        ]
        assert costs == sorted(costs, reverse=True) and costs[-1] < 0.9 * costs[0]
        assert algorithm.probabilities()["cell"][:, 3].max() < 0.02


class TestRewards:
    def test_direction_and_baseline(self, start, image_batch, monkeypatch, tmp_path, small_bench):
        """Two steps by hand: the baseline starts at a mean and moves before it is used."""
        table = table_of(small_bench)
        table.save(tmp_path / "costs.json")
        algorithm = ProxylessNAS(
            gradient="reinforce",
            samples=3,
            cost=str(tmp_path / "costs.json"),
            cost_reference=60.0,
            **AT_ONCE,
        )
        algorithm = wide(algorithm, start, small_bench)
        kept = gradients_of(algorithm, monkeypatch)
        generator = torch.Generator().manual_seed(0)
        baseline = None
        for step in range(2):
            alphas, valid = algorithm.alphas["cell"], doubled(image_batch(step + 9, 16))
            supernet = copy.deepcopy(algorithm.supernet)
            seed = ops.draw_seed(generator)
            rewards, scores = [], []
            for offset in (0, 2, 3):  # the weights' pass has the first
                picks = drawn_paths(alphas, seed + torch.tensor([0, offset]), 1)
                active = tuple(map(tuple, picks.tolist()))
                gate = {"cell": GateOutput(torch.ones(6, 1).double(), active)}
                with torch.no_grad():
                    hits = (supernet(valid[0], gate).argmax(1) == valid[1]).double().mean()
                cost = 40.0 + float(table.rows["cell"].gather(1, picks).sum())
                rewards.append(float(hits) * (60.0 / cost) ** 0.1)
                scores.append(F.one_hot(picks[:, 0], 5) - alphas.softmax(1))
            mean = sum(rewards) / 3
            baseline = mean if baseline is None else baseline + 0.99 * (mean - baseline)
            metrics = algorithm.step(doubled(image_batch(step)), valid)
            assert metrics["alpha/reward"].item() == pytest.approx(mean, rel=1e-5)
            want = -sum((r - baseline) * s for r, s in zip(rewards, scores, strict=True)) / 3
            assert len(set(rewards)) > 1
            torch.testing.assert_close(kept[step], want, rtol=1e-4, atol=1e-8)
        assert float(algorithm.baseline) == pytest.approx(baseline, rel=1e-5)

    def test_costs_go_by_the_names_of_their_tables(
        self, start, image_batch, small_darts, monkeypatch, tmp_path
    ):
        """In whatever order a file has them."""
        generator = torch.Generator().manual_seed(0)
        rows = {
            table: torch.rand(len(names), len(names[0]), generator=generator).double()
            for table, names in small_darts.candidates.items()
        }
        found = []
        for order in (list(rows), list(rows)[::-1]):
            path = tmp_path / f"{order[0]}.json"
            CostTable("ms", 1.0, {table: rows[table] for table in order}).save(path)
            algorithm = ProxylessNAS(gradient="reinforce", samples=2, cost=str(path), **AT_ONCE)
            kept = gradients_of(start(algorithm, small_darts), monkeypatch)
            metrics = algorithm.step(image_batch(0), image_batch(1))
            found.append((float(metrics["alpha/reward"]), kept[0]))
        assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])

    def test_its_mean_is_the_gradient_of_the_expected_reward(self, start, monkeypatch):
        """Against the enumeration of the toy space, within 4.5 standard errors."""
        samples = 1500
        algorithm = wide(
            ProxylessNAS(gradient="reinforce", samples=samples, **AT_ONCE), start, spaces.Toy()
        )
        rewards = torch.rand(4, 4, generator=torch.Generator().manual_seed(1))
        seen = []

        def reward(valid, drawn, passes):
            first, second = drawn.picks[0]
            passes.append({"valid/loss": 0.0})
            seen.append((first, second))
            return rewards[first, second]

        monkeypatch.setattr(algorithm, "_reward", reward)
        p = algorithm.probabilities()["cell"]
        _, (got,) = algorithm._reward_gradient(None, False)
        moments = torch.zeros(2, 2, 4, dtype=torch.float64)
        mean = (p[0].unsqueeze(1) * p[1] * rewards).sum()
        for a in range(4):
            for b in range(4):
                score = torch.stack([F.one_hot(torch.tensor(k), 4) for k in (a, b)]) - p
                term = -(rewards[a, b] - mean) * score
                moments += p[0, a] * p[1, b] * torch.stack([term, term.square()])
        errors = ((moments[1] - moments[0].square()) / samples).sqrt()
        assert len(set(seen)) == 16
        assert ((got - moments[0]).abs() < 4.5 * errors).all()
        assert (moments[0].abs() > 5 * errors).any(), "a wrong sign would be seen"

    def test_labels_that_are_no_classes_are_refused(self, start):
        algorithm = start(ProxylessNAS(gradient="reinforce", samples=1, **AT_ONCE))
        algorithm.loss = F.mse_loss
        batch = torch.randn(6, 4), torch.randn(6, 3)
        with pytest.raises(ConfigError, match="must not be 'reinforce' where labels are not class"):
            algorithm.step(batch, batch)


class TestSchedules:
    def moved(self, algorithm, tiny_batch, steps):
        moved = []
        for step in range(steps):
            before = algorithm.alphas["cell"]
            metrics = algorithm.step(tiny_batch(step), tiny_batch(step + 99))
            moved.append(not torch.equal(algorithm.alphas["cell"], before))
            assert ("valid/loss" in metrics) is moved[-1]
        return [step for step, yes in enumerate(moved) if yes]

    def test_the_architecture_moves_every_few_steps_after_its_rest(self, start, tiny_batch):
        """Eight epochs of four steps: two of warm-up, one of rest; steps count from one."""
        algorithm = start(ProxylessNAS(alpha_interval=3), epochs=8, steps_per_epoch=4)
        steps = self.moved(algorithm, tiny_batch, 32)
        assert steps == [14, 17, 20, 23, 26, 29]
        assert algorithm.alpha_steps == len(steps)

    @pytest.mark.parametrize(
        ("epochs", "options", "first"),
        [
            (1, {}, 0),  # the last epoch searches
            (2, {}, 2),
            (2, {"alpha_rest": 0}, 0),
            (4, {"alpha_warmup": 0.5}, 6),
            (4, {"alpha_warmup": 0.5, "alpha_rest": 9}, 6),
            (4, {"alpha_warmup": 1.0}, None),
        ],
    )
    def test_when_it_begins(self, epochs, options, first, start, tiny_batch):
        algorithm = ProxylessNAS(alpha_interval=1, **options)
        algorithm = start(algorithm, epochs=epochs, steps_per_epoch=2)
        steps = self.moved(algorithm, tiny_batch, 2 * epochs)
        assert steps == ([] if first is None else list(range(first, 2 * epochs)))

    def test_rates_follow_the_steps(self, start, tiny_batch):
        algorithm = start(ProxylessNAS(), epochs=8, steps_per_epoch=2)
        rates = []
        for step in range(18):
            algorithm.step(tiny_batch(step), tiny_batch(step + 99))
            rates.append(float(algorithm.weight_optimizer.param_groups[0]["lr"]))
        want = [0.025 * (1 + math.cos(math.pi * n / 4)) for n in range(4)]
        want += [0.0125 * (1 + math.cos(math.pi * n / 12)) for n in (*range(12), 11, 11)]
        assert rates == pytest.approx(want, rel=1e-6)

    def test_weights_take_nesterov_steps_at_these_rates(self, start, tiny_batch):
        """The fused step whose rate is on the device, against torch's own loop."""
        space = spaces.Toy()
        algorithm = start(ProxylessNAS(alpha_interval=99), space, epochs=4, steps_per_epoch=2)
        mine = algorithm.supernet.score.weight
        plain = mine.detach().clone().requires_grad_()
        sgd = torch.optim.SGD([plain], lr=1.0, momentum=0.9, weight_decay=4e-5, nesterov=True)
        for _ in range(6):
            batch = torch.randn(6, 8), torch.randint(2, (6,))
            rate = algorithm.current_weight_lr
            algorithm.step(batch, batch)
            plain.grad = mine.grad.clone()
            sgd.param_groups[0]["lr"] = rate
            sgd.step()
            torch.testing.assert_close(mine, plain, rtol=1e-6, atol=1e-7)

    def test_defaults_are_the_published_ones(self):
        algorithm = ProxylessNAS()
        assert (algorithm.gradient, algorithm.samples) == ("full_v2", 10)
        assert (algorithm.alpha_interval, algorithm.alpha_warmup * 160) == (5, 40)
        assert (algorithm.alpha_lr, algorithm.alpha_betas) == (1e-3, (0.0, 0.999))
        assert (algorithm.alpha_decay, algorithm.weight_decay) == (0.0, 4e-5)
        assert (algorithm.weight_lr, algorithm.weight_lr_min, algorithm.warmup_lr) == (
            0.025,
            0,
            0.05,
        )
        assert (algorithm.weight_momentum, algorithm.weight_nesterov) == (0.9, True)
        assert (algorithm.cost_form, algorithm.cost_reference) == ("mul-log", 80.0)
        assert (algorithm.cost_scale, algorithm.cost_exponent) == (0.2, 0.3)
        assert algorithm.cost_weight == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 3}, "samples must be 10 with gradient='full_v2'"),
        ({"cost_weight": 0.5}, "cost_weight must be 0.1 with .* cost='none'"),
        ({"cost_reference": 9.0}, "cost_reference must be 80.0 with .* cost='none'"),
        ({"cost": "parameters", "cost_weight": 0.5}, "cost_weight must be 0.1 with .*'mul-log'"),
        (
            {"cost": "parameters", "cost_form": "add-linear", "cost_scale": 1.0},
            "cost_scale must be 0.2 with .*'add-linear'",
        ),
        (
            {"cost": "parameters", "gradient": "reinforce", "cost_form": "add-linear"},
            "cost_form must be 'mul-log' with gradient='reinforce'",
        ),
        (
            {"warmup_lr": 9.0, "alpha_warmup": 0.0},
            "warmup_lr must be 0.05 with alpha_warmup=0, where nothing reads it, got 9.0",
        ),
        ({"alpha_rest": 2, "alpha_warmup": 1.0}, "alpha_rest must be 1 with alpha_warmup=1"),
        ({"gradient": "three"}, "gradient must be one of 'full_v2', 'full', 'two', 'reinforce'"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ProxylessNAS(**options)

"""GDAS against its definition: what is drawn and runs, both gradients of the logits, schedules."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F

from pyfast_nas import _ext, ops, spaces
from pyfast_nas.algorithms import GDAS, MSGDAS
from pyfast_nas.algorithms.sub_graphs import stack_tables
from pyfast_nas.nn import GateOutput, cell
from pyfast_nas.nn.fusion import FusedCall

SIZES = {"channels": 4, "num_classes": 3, "in_channels": 1, "image_size": 8}
SPACES = {
    "darts": spaces.DARTS(cells=3, nodes=2, track_running_stats=True, **SIZES),
    # `none` is drawn often enough to leave nodes with nothing else.
    "nas-bench-201": spaces.NASBench201(cells=1, track_running_stats=True, **SIZES),
}
P = torch.tensor([1.0, 0.5, 0.0, -0.5, -1.0], dtype=torch.float64).softmax(0)


def prepared(algorithm, space, *, dtype=torch.float64, **run):
    """Start on a supernet whose logits are far enough from each other to tell rows apart."""
    torch.manual_seed(0)
    supernet = space.supernet(torch.Generator().manual_seed(0)).to(dtype)
    for alpha in supernet.arch_parameters():
        torch.nn.init.normal_(alpha, generator=torch.Generator().manual_seed(1))
    run = {"epochs": 3, "steps_per_epoch": 2} | run
    generator = torch.Generator().manual_seed(2)
    algorithm.prepare(supernet, space=space, generator=generator, **run)
    return algorithm


def batch(seed, dtype=torch.float64, size=4):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 1, 8, 8, generator=draw, dtype=dtype)
    return images, torch.randint(3, (size,), generator=draw)


def make_step(algorithm, train, valid, on_device):
    if not on_device:
        return algorithm.step(train, valid)
    algorithm.start_step()
    metrics = algorithm.run_step(train, valid)
    algorithm.finish_step()
    return metrics


def keep_alpha_gradients(algorithm):
    kept, update = [], algorithm._update_alphas

    def spy(gradients):
        kept.append([gradient.clone() for gradient in gradients])
        return update(gradients)

    algorithm._update_alphas = spy
    return kept


class TestDraws:
    """Frequencies at the level 1e-6, and from one draw of many rows."""

    ROWS = 60_000

    def draw(self, steps, offset=0):
        algorithm = prepared(GDAS(), SPACES["darts"], epochs=5, steps_per_epoch=1)
        algorithm.steps = steps
        logits = {"normal": P.log().repeat(self.ROWS, 1)}
        drawn = algorithm._draw(logits, torch.tensor([7, offset]), on_device=False)
        return torch.tensor(drawn.picks[0])

    @pytest.mark.parametrize("steps", [0, 4])
    def test_frequencies_are_the_probabilities_at_every_temperature(self, steps):
        counts = torch.bincount(self.draw(steps), minlength=5)
        want = self.ROWS * P
        assert ((counts - want) ** 2 / want).sum() < 33.37, "4 degrees of freedom"

    def are_independent(self, first, second):
        counts = torch.bincount(5 * first + second, minlength=25).view(5, 5).double()
        want = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
        return ((counts - want) ** 2 / want).sum() < 58.32  # 16 degrees of freedom

    def test_rows_are_independent(self):
        picks = self.draw(0)
        assert self.are_independent(picks[::2], picks[1::2])

    def test_both_passes_of_a_step_are_independent(self):
        first = self.draw(0)
        assert self.are_independent(first, self.draw(0, offset=1))
        assert not self.are_independent(first, first), "control"

    def test_the_passes_of_a_step_draw_at_the_seed_and_at_its_next_offset(self, monkeypatch):
        algorithm, seeds = prepared(GDAS(), SPACES["darts"]), []
        draw = algorithm._draw

        def spy(logits, seed, on_device):
            seeds.append(seed.tolist())
            return draw(logits, seed, on_device)

        monkeypatch.setattr(algorithm, "_draw", spy)
        generator, want = torch.Generator().manual_seed(2), []
        for step in range(2):
            algorithm.step(batch(step), batch(step + 9))
            seed, offset = ops.draw_seed(generator).tolist()
            want += [[seed, offset], [seed, offset + 1]]
        assert seeds == want

    def test_what_runs_is_the_largest_key_where_weights_are_equal(self):
        """At a low temperature rounding makes one of q, and nothing of all others."""
        algorithm = prepared(GDAS(tau_max=1e-3, tau_min=1e-3), SPACES["darts"])
        logits = {"normal": torch.zeros(1000, 5)}
        seed = torch.tensor([3, 0])
        drawn = algorithm._draw(logits, seed, on_device=False)
        keys = ops.gumbel_noise(seed, 1000, 5)
        q = (keys / 1e-3).softmax(1)
        assert (q.sort(1).values[:, -2] == 0).sum() > 900
        assert drawn.picks[0] == tuple(keys.argmax(1).tolist())


def plain_gradient(algorithm, valid, variant, monkeypatch):
    """Run one pass with factors h on plain modules: the gate gradients, by h, and the logits'.

    Returns:
        The gradient that autograd finds through h = one_hot - q.detach() + q, and that of (0.1).
    """
    supernet, tau = copy.deepcopy(algorithm.supernet), algorithm.tau
    seed = ops.draw_seed(torch.Generator().manual_seed(2))
    alphas = stack_tables(supernet.logits()).detach().requires_grad_()
    # In double precision: `gumbel_noise` rounds to single.
    noise = -(-ops.philox_uniform(seed, *alphas.shape, stream=0).double().log()).log()
    keys = alphas.log_softmax(1) + noise
    q, picks = (keys / tau).softmax(1), keys.argmax(1)
    h = F.one_hot(picks, alphas.shape[1]) - q.detach() + q
    leaf = h.detach().requires_grad_()

    def mix(edges, inputs, gate, first_row=0):
        total = 0
        for row, (edge, x) in enumerate(zip(edges, inputs, strict=False), start=first_row):
            pick = int(gate.weights[row].argmax())
            total = total + gate.weights[row, pick] * edge.candidate(pick)(x)
            if variant == "A":
                others = [k for k in range(edge.num_ops) if k != pick]
                total = total + gate.weights[row, others].sum()
        return total

    with monkeypatch.context() as patch:
        patch.setattr(cell, "mix_edges", mix)
        patch.setattr(cell.Assembly, "run", lambda *_: None)
        gates, row = {}, 0
        for table, of_table in supernet.alphas.items():
            gates[table] = GateOutput(leaf[row : row + len(of_table)])
            row += len(of_table)
        loss = F.cross_entropy(supernet(valid[0], gates), valid[1])
        (c,) = torch.autograd.grad(loss, leaf)
    (by_autograd,) = torch.autograd.grad(h, alphas, c)
    q = q.detach()
    return loss.detach(), by_autograd, q * (c - (q * c).sum(1, keepdim=True)) / tau


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("variant", ["A", "B"])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("tau", [10.0, 0.5])
def test_gradient_is_that_of_the_factors(tau, space, variant, on_device, monkeypatch):
    algorithm = prepared(GDAS(variant=variant, tau_max=tau), space)
    kept = keep_alpha_gradients(algorithm)
    loss, by_autograd, formula = plain_gradient(algorithm, batch(1), variant, monkeypatch)
    torch.testing.assert_close(formula, by_autograd, rtol=1e-10, atol=1e-14)
    metrics = make_step(algorithm, batch(0), batch(1), on_device)
    torch.testing.assert_close(metrics["valid/loss"], loss, rtol=1e-12, atol=0)
    assert formula.abs().max() > 1e-4
    torch.testing.assert_close(torch.cat(kept[0]), formula, rtol=1e-10, atol=1e-13)


def test_a_node_that_nothing_reaches_has_a_gradient_in_variant_a_only(monkeypatch):
    for variant in ("A", "B"):
        algorithm = prepared(GDAS(variant=variant), SPACES["nas-bench-201"])
        with torch.no_grad():
            algorithm.supernet.alphas["cell"][0, 0] = 9.0  # `none`, on the only way to its node
            algorithm.supernet.alphas["cell"][4, 1] = 9.0  # the identity, from there to the end
        kept = keep_alpha_gradients(algorithm)
        _, _, formula = plain_gradient(algorithm, batch(1), variant, monkeypatch)
        algorithm.step(batch(0), batch(1))
        torch.testing.assert_close(kept[0][0], formula, rtol=1e-10, atol=1e-13)
        assert (kept[0][0][0].abs().max() > 1e-4) == (variant == "A")


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_variants_are_unlike_and_their_steps_of_the_weights_are_the_same(space, freeze):
    found = []
    for variant in ("A", "B"):
        algorithm = prepared(GDAS(variant=variant), space)
        kept = keep_alpha_gradients(algorithm)
        metrics = algorithm.step(batch(0), batch(1))
        found.append((torch.cat(kept[0]), freeze(dict(metrics)), algorithm))
    (a, metrics_a, with_a), (b, metrics_b, with_b) = found
    assert (a - b).abs().max() > 1e-4
    del metrics_a["alpha/gradient_norm"], metrics_b["alpha/gradient_norm"]
    assert metrics_a == metrics_b, "what is added is zero to the bit"
    for name, weight in with_a.supernet.named_parameters():
        if "alphas" not in name:
            assert torch.equal(weight, with_b.supernet.get_parameter(name))


def test_variant_a_runs_in_fused_nodes(monkeypatch):
    if "compiled" not in _ext.kernels_in_use("cpu").values():
        pytest.skip("no compiled kernels for the CPU in this installation")
    algorithm = prepared(GDAS(variant="A"), SPACES["nas-bench-201"], dtype=torch.float32)
    calls, run = [], FusedCall.run
    monkeypatch.setattr(
        FusedCall, "run", lambda self, *rest: calls.append(self) or run(self, *rest)
    )
    algorithm._architecture_step(batch(1, torch.float32), on_device=True)
    assert len(calls) == 9, "three nodes in each of three cells"


class TestWhatRuns:
    def counted(self, supernet):
        """Calls of every candidate by table, row and index, summed over the cells."""
        calls = {}
        for table, row, edge in supernet.placed_edges():
            for index in range(edge.num_ops):
                place = table, row, index

                def count(*_, place=place):
                    calls[place] = calls.get(place, 0) + 1

                edge.candidate(index).register_forward_hook(count)
        return calls

    @pytest.mark.parametrize("variant", ["A", "B"])
    @pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
    def test_one_candidate_of_each_row_in_each_pass(self, space, variant, monkeypatch):
        algorithm = prepared(GDAS(variant=variant), space)
        drawn, draw = [], algorithm._draw
        monkeypatch.setattr(algorithm, "_draw", lambda *a: drawn.append(draw(*a)) or drawn[-1])
        calls = self.counted(algorithm.supernet)
        places = {(t, row): 0 for t, row, _ in algorithm.supernet.placed_edges()}
        for table, row, _ in algorithm.supernet.placed_edges():
            places[table, row] += 1
        algorithm.step(batch(0), batch(1))
        assert len(drawn) == 2
        want = {}
        for sub_graph in drawn:
            (picks,) = sub_graph.picks
            rows = ((t, row) for t, count in sub_graph.rows.items() for row in range(count))
            for (table, row), pick in zip(rows, picks, strict=True):
                if algorithm.supernet.candidates[table][row][pick] != "none":
                    place = table, row, pick
                    want[place] = want.get(place, 0) + places[table, row]
        ran = {place: n for place, n in calls.items() if self.name(algorithm, place) != "none"}
        assert ran == want

    def name(self, algorithm, place):
        table, row, index = place
        return algorithm.supernet.candidates[table][row][index]

    def test_weights_of_what_did_not_run_stay_under_nesterov_momentum(self):
        algorithm = prepared(GDAS(), SPACES["darts"], steps_per_epoch=9)
        for step in range(3):
            algorithm.step(batch(step), batch(step + 9))
        moved = {True: 0, False: 0}
        before = copy.deepcopy(algorithm.supernet.state_dict())
        algorithm.step(batch(4), batch(5))
        for name, weight in algorithm.supernet.named_parameters():
            if "alphas" not in name:
                has_moved = not torch.equal(weight, before[name])
                assert has_moved == (weight.grad is not None)
                moved[has_moved] += ".candidates." in name
        assert min(moved.values()) > 0


# MSG-DAS with one path and nothing of its own.
ONE_PATH = functools.partial(
    MSGDAS,
    paths=1,
    drop_rate=0.0,
    kd_weight=0.0,
    alpha_warmup=0.0,
    weight_nesterov=True,
    weight_decay=5e-4,
)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_g3_msg_das_with_one_path_is_gdas_to_the_bit(space, on_device, freeze):
    """Outputs, gradients of the weights and of the logits, over whole steps."""
    runs = []
    for make in (GDAS, ONE_PATH):
        algorithm, rows = prepared(make(), space, dtype=torch.float32), []
        kept, outputs = keep_alpha_gradients(algorithm), []
        algorithm.supernet.register_forward_hook(lambda *a, outputs=outputs: outputs.append(a[2]))
        for step in range(6):
            train, valid = (batch(seed, torch.float32) for seed in (step, step + 9))
            metrics = dict(make_step(algorithm, train, valid, on_device))
            metrics.pop("drop_rate", None)
            gradients = {n: p.grad for n, p in algorithm.supernet.named_parameters()}
            rows.append(freeze([metrics, outputs, kept[-1], gradients]))
            outputs.clear()
        state = algorithm.supernet.state_dict(), algorithm.weight_optimizer.state_dict()
        runs.append((rows, freeze(state), freeze(algorithm.alpha_optimizer.state_dict())))
        assert len(kept) == 6
    assert runs[0] == runs[1]


def test_variant_a_is_not_msg_das(freeze):
    """Control of the test above."""
    alphas = []
    for algorithm in (GDAS(variant="A"), ONE_PATH()):
        prepared(algorithm, SPACES["darts"], dtype=torch.float32)
        algorithm.step(batch(0, torch.float32), batch(1, torch.float32))
        alphas.append(freeze(dict(algorithm.alphas)))
    assert alphas[0] != alphas[1]


@pytest.mark.parametrize(("epochs", "want"), [(1, [10.0]), (4, [10.0, 6.7, 3.4, 0.1])])
def test_temperature_falls_linearly(epochs, want, start, tiny_batch):
    algorithm = start(GDAS(), epochs=epochs, steps_per_epoch=2)
    taus = [algorithm.step(tiny_batch(s), tiny_batch(s + 9))["tau"] for s in range(2 * epochs)]
    assert taus == pytest.approx([tau for tau in want for _ in range(2)])


def test_defaults_are_those_of_the_authors_code(start):
    algorithm = start(GDAS())
    (group,) = algorithm.weight_optimizer.param_groups
    assert (group["nesterov"], group["momentum"], group["weight_decay"]) == (True, 0.9, 5e-4)
    assert (algorithm.weight_lr, algorithm.weight_lr_min) == (0.025, 0.001)
    assert algorithm.gradient_clip == 5.0
    (group,) = algorithm.alpha_optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.5, 0.999), 1e-3)

"""MSG-DAS against its definition: gradients, modes, what runs, schedules."""

import copy

import pytest
import torch
import torch.nn.functional as F

from pyfast_nas import ops, spaces
from pyfast_nas.algorithms import MSGDAS
from pyfast_nas.algorithms.distillation import distillation_loss, teacher_outputs
from pyfast_nas.nn import GateOutput, MixedOp


def record_gradients(algorithm, monkeypatch):
    """Keep the architecture gradients of every step."""
    kept = []
    update = algorithm._update_alphas

    def spy(gradients):
        kept.append([gradient.clone() for gradient in gradients])
        return update(gradients)

    monkeypatch.setattr(algorithm, "_update_alphas", spy)
    return kept


def weight_gradients(algorithm):
    return {n: p.grad for n, p in algorithm.supernet.named_parameters() if p.grad is not None}


def wide(algorithm, start, space, **run):
    """Prepare in double precision."""
    algorithm = start(algorithm, space, **run)
    algorithm.supernet.double()
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


@pytest.fixture
def skip_heavy():
    """A space in which DropBlock has work to do."""
    return spaces.DARTS(
        channels=4,
        cells=3,
        nodes=2,
        num_classes=3,
        in_channels=1,
        image_size=8,
        operations=("none", "skip_connect", "max_pool_3x3", "dil_conv_3x3"),
    )


class TestGradient:
    """The alpha gradient is (1.1) or (1.2) with gate gradients measured by scaling outputs."""

    @pytest.mark.parametrize("relaxation", ["shared", "conditional", "subset"])
    @pytest.mark.parametrize("assignment", ["rank", "shuffle"])
    def test_formula(self, relaxation, assignment, start, skip_heavy, image_batch, monkeypatch):
        algorithm = MSGDAS(
            paths=3, relaxation=relaxation, assignment=assignment, alpha_warmup=0, drop_rate=0
        )
        algorithm = wide(algorithm, start, skip_heavy)
        kept = record_gradients(algorithm, monkeypatch)
        supernet = copy.deepcopy(algorithm.supernet)
        seed = ops.draw_seed(torch.Generator().manual_seed(0))
        valid = doubled(image_batch(1))
        algorithm.step(doubled(image_batch(0)), valid)

        alphas = torch.cat([a.detach() for a in supernet.alphas.values()])
        rows, width = alphas.shape
        keys = alphas + ops.gumbel_noise(seed, rows, width)
        picks = keys.argsort(dim=1, descending=True)[:, :3]
        deal = torch.arange(3).expand(rows, 3)
        if assignment == "shuffle":
            deal = ops.philox_uniform(seed, rows, 3, stream=1).argsort(dim=1)
        want, gate_gradients = torch.zeros_like(alphas), torch.zeros(rows, 3, dtype=torch.float64)
        for k in range(3):
            scale = torch.ones(rows, 1, dtype=torch.float64, requires_grad=True)
            chosen = picks.gather(1, deal[:, k : k + 1])
            half = rows // 2
            gates = {
                table: GateOutput(scale[part], tuple(map(tuple, chosen[part].tolist())))
                for table, part in (("normal", slice(half)), ("reduce", slice(half, rows)))
            }
            loss = F.cross_entropy(supernet(valid[0], gates), valid[1]) / 3
            (c,) = torch.autograd.grad(loss, scale)
            for row in range(rows):
                rank, pick = int(deal[row, k]), int(chosen[row])
                gate_gradients[row, rank] = c[row]
                left = keys[row].clone()
                if relaxation == "conditional":
                    left[picks[row, :rank]] = -torch.inf
                q = (left / algorithm.tau_max).softmax(0)
                one_hot = F.one_hot(torch.tensor(pick), width)
                want[row] += c[row] * q[pick] * (one_hot - q) / algorithm.tau_max
        if relaxation == "subset":
            scores = moved = keys.clone().requires_grad_()
            want = torch.zeros_like(alphas)
            for rank in range(3):
                q = (scores / algorithm.tau_max).softmax(1)
                weight = q.gather(1, picks[:, rank : rank + 1])[:, 0]
                want += torch.autograd.grad(
                    weight, moved, gate_gradients[:, rank], retain_graph=True
                )[0]
                scores = scores + torch.log(1 - q)
        assert want.abs().max() > 1e-6
        torch.testing.assert_close(torch.cat(kept[0]), want, rtol=1e-7, atol=1e-12)

    def test_score_function(self, start, tiny_batch, monkeypatch):
        """(1.3) with the moving average of earlier losses as the baseline."""
        algorithm = MSGDAS(relaxation="score", score_baseline=0.9, alpha_warmup=0, alpha_lr=1e-9)
        algorithm = start(algorithm)
        kept = record_gradients(algorithm, monkeypatch)
        generator = torch.Generator().manual_seed(0)
        losses = []
        for step in range(3):
            alphas = algorithm.supernet.logits()["cell"].detach().double()
            seed = ops.draw_seed(generator)
            metrics = algorithm.step(tiny_batch(step), tiny_batch(step + 9))
            losses.append(metrics["valid/loss"].item())
            decay = 0.9
            weights = [(1 - decay) * decay ** (step - 1 - i) for i in range(step)]
            baseline = sum(w * x for w, x in zip(weights, losses, strict=False)) / (
                sum(weights) or 1
            )
            keys = alphas + ops.gumbel_noise(seed, 2, 3)
            picks = keys.argsort(dim=1, descending=True)[:, :2]
            want = torch.zeros_like(alphas)
            for row in range(2):
                left = alphas[row].clone()
                for pick in picks[row]:
                    want[row] -= left.softmax(0)
                    want[row, pick] += 1
                    left[pick] = -torch.inf
            want *= losses[-1] - baseline
            torch.testing.assert_close(kept[step][0].double(), want, rtol=1e-4, atol=1e-6)


class TestModes:
    @pytest.mark.parametrize("relaxation", ["shared", "conditional"])
    @pytest.mark.parametrize("assignment", ["rank", "shuffle"])
    def test_equal_on_cells_with_drop_block(
        self, relaxation, assignment, start, skip_heavy, image_batch, monkeypatch
    ):
        batches = doubled(image_batch(0)), doubled(image_batch(1))
        self.check(relaxation, assignment, start, skip_heavy, batches, monkeypatch)

    def test_equal_with_dropout_and_batch_norm(self, start, tiny_space, tiny_batch, monkeypatch):
        batches = doubled(tiny_batch(0)), doubled(tiny_batch(1))
        self.check("shared", "shuffle", start, tiny_space, batches, monkeypatch)

    def check(self, relaxation, assignment, start, space, batches, monkeypatch):
        results = []
        for mode in ("accumulate", "joint"):
            algorithm = MSGDAS(
                mode=mode,
                relaxation=relaxation,
                assignment=assignment,
                alpha_warmup=0,
                kd_warmup=0,
                kd_in_alpha_step=True,
            )
            algorithm = wide(algorithm, start, space)
            kept = record_gradients(algorithm, monkeypatch)
            torch.manual_seed(1)
            metrics = algorithm.step(*batches)
            results.append((kept[0], weight_gradients(algorithm), metrics))
        (alphas, weights, metrics), (joint_alphas, joint_weights, joint_metrics) = results
        # Equal up to the order of additions: 1e-10 in double precision.
        torch.testing.assert_close(alphas, joint_alphas, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(weights, joint_weights, rtol=1e-10, atol=1e-10)
        for key, value in metrics.items():
            assert float(joint_metrics[key]) == pytest.approx(float(value), rel=1e-10), key
        assert any(gradient.abs().max() > 1e-6 for gradient in alphas)

    def test_drop_block_is_at_work_there(self, start, skip_heavy, image_batch):
        """Control: the rate changes the losses of the steps compared above."""
        losses = []
        for rate in (0.0, 0.3):
            algorithm = start(MSGDAS(drop_rate=rate, alpha_warmup=0, kd_weight=0), skip_heavy)
            losses.append(algorithm.step(image_batch(0), image_batch(1))["train/loss"].item())
        assert losses[0] != losses[1]


class GDAS:
    """One step of GDAS, single-path form (variant B), as plainly as it can be written."""

    def __init__(self, supernet, generator):
        self.supernet, self.generator = supernet, generator
        self.sgd = torch.optim.SGD(
            supernet.weight_parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4
        )
        self.adam = torch.optim.Adam(
            supernet.arch_parameters(), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3
        )

    def gates(self, seed, tau):
        tables = self.supernet.alphas
        stacked = torch.cat(list(tables.values()))
        q, index = ops.gumbel_topk(stacked, 1, tau=tau, seed=seed)
        gates, row = {}, 0
        for table, alpha in tables.items():
            rows = slice(row, row + len(alpha))
            active = tuple(map(tuple, index[rows].tolist()))
            gates[table] = GateOutput(q[rows], active, straight_through=True)
            row = rows.stop
        return gates

    def step(self, train, valid, tau):
        seed = ops.draw_seed(self.generator)
        losses = []
        for optimizer, (x, y), offset in ((self.adam, valid, 0), (self.sgd, train, 1)):
            self.adam.zero_grad()
            self.sgd.zero_grad()
            loss = F.cross_entropy(
                self.supernet(x, self.gates(seed + torch.tensor([0, offset]), tau)), y
            )
            loss.backward()
            if optimizer is self.sgd:
                torch.nn.utils.clip_grad_norm_(self.supernet.weight_parameters(), 5.0)
            optimizer.step()
            losses.append(loss.detach())
        return losses


@pytest.mark.parametrize("assignment", ["rank", "shuffle"])
@pytest.mark.parametrize("relaxation", ["shared", "conditional", "subset"])
def test_one_path_is_gdas_to_the_bit(
    relaxation, assignment, start, skip_heavy, image_batch, freeze
):
    options = {"drop_rate": 0, "kd_weight": 0, "alpha_warmup": 0}
    algorithm = MSGDAS(paths=1, relaxation=relaxation, assignment=assignment, **options)
    algorithm = start(algorithm, skip_heavy, epochs=1, steps_per_epoch=3)
    gdas = GDAS(copy.deepcopy(algorithm.supernet), torch.Generator().manual_seed(0))
    for step in range(3):
        train, valid = image_batch(step), image_batch(step + 9)
        metrics = algorithm.step(train, valid)
        valid_loss, train_loss = gdas.step(train, valid, tau=10.0)
        assert torch.equal(metrics["train/loss"], train_loss)
        assert torch.equal(metrics["valid/loss"], valid_loss)
        assert freeze(weight_gradients(algorithm)).keys() == {
            n
            for n, p in gdas.supernet.named_parameters()
            if p.grad is not None and "alphas" not in n
        }
        assert freeze(algorithm.supernet.state_dict()) == freeze(gdas.supernet.state_dict())


class TestWhatRuns:
    def counted(self, algorithm):
        """Calls of every candidate since the start, by module name."""
        calls = {}
        for name, module in algorithm.supernet.named_modules():
            if isinstance(module, MixedOp):
                for index in range(module.num_ops):
                    key = f"{name}.{index}"
                    calls[key] = 0

                    def hook(*_, key=key):
                        calls[key] += 1

                    module.candidate(index).register_forward_hook(hook)
        return calls

    @pytest.mark.parametrize("assignment", ["rank", "shuffle"])
    def test_all_paths_run_every_candidate_once(self, assignment, start, image_batch):
        space = spaces.DARTS(
            channels=4,
            cells=1,
            nodes=1,
            num_classes=3,
            in_channels=1,
            image_size=8,
            operations=("skip_connect", "sep_conv_3x3", "dil_conv_3x3"),
        )
        algorithm = start(
            MSGDAS(paths=3, assignment=assignment, kd_weight=0, alpha_warmup=1), space
        )
        calls = self.counted(algorithm)
        algorithm.step(image_batch(0), image_batch(1))
        assert set(calls.values()) == {1}
        assert all(p.grad is not None for p in algorithm.weights)

    def test_candidates_that_did_not_run_do_not_move(self, start, tiny_batch):
        algorithm = start(MSGDAS(paths=1, kd_weight=0, alpha_warmup=0))
        seen = set()
        for step in range(12):
            before = {n: p.detach().clone() for n, p in algorithm.supernet.named_parameters()}
            calls = self.counted(algorithm)
            for key in calls:
                calls[key] = 0
            # Only the weight pass counts: the architecture pass runs candidates of its own.
            architecture = algorithm._architecture_step
            algorithm._architecture_step = lambda *_: {}
            algorithm.step(tiny_batch(step), tiny_batch(step))
            algorithm._architecture_step = architecture
            for name, edge in algorithm.supernet.named_modules():
                if isinstance(edge, MixedOp):
                    for index in range(edge.num_ops):
                        ran = calls[f"{name}.{index}"] > 0
                        for tail, p in edge.candidate(index).named_parameters():
                            full = f"{name}.candidates.{edge.names[index]}.{tail}"
                            assert (p.grad is not None) == ran
                            assert torch.equal(p, before[full]) != ran
                        seen.add((name, index, ran))
        assert len(seen) == 10, "each of five candidates was seen to run and to rest"

    def test_only_the_drawn_candidates_run(self, start, image_batch, skip_heavy):
        algorithm = start(MSGDAS(paths=2, kd_weight=0, alpha_warmup=1), skip_heavy)
        calls = self.counted(algorithm)
        algorithm.step(image_batch(0), image_batch(1))
        for edge in {key.rpartition(".")[0] for key in calls}:
            assert sum(n for key, n in calls.items() if key.rpartition(".")[0] == edge) <= 2
            assert calls[f"{edge}.0"] <= 1, "none runs only where a whole node is cut off"


class TestGuidance:
    def test_is_part_of_the_weight_loss(self, start, tiny_batch):
        algorithm = MSGDAS(paths=1, kd_warmup=0, kd_weight=0.5, kd_temperature=2.0, alpha_warmup=1)
        algorithm = start(algorithm)
        supernet = copy.deepcopy(algorithm.supernet)
        x, y = tiny_batch(0)
        seed = ops.draw_seed(torch.Generator().manual_seed(0)) + torch.tensor([0, 1])
        logits = supernet.logits()["cell"].detach()
        _, index = ops.gumbel_topk(logits, 1, tau=10.0, seed=seed)
        torch.manual_seed(3)
        teacher = teacher_outputs(supernet, x)
        gate = GateOutput(torch.ones(2, 1), tuple(map(tuple, index.tolist())))
        outputs = supernet(x, {"cell": gate})
        guidance = distillation_loss(outputs, teacher, 2.0)
        (F.cross_entropy(outputs, y) + 0.5 * guidance).backward()

        torch.manual_seed(3)
        metrics = algorithm.step((x, y), tiny_batch(1))
        assert metrics["kd/loss"].item() == pytest.approx(guidance.item(), rel=1e-5)
        for name, p in supernet.named_parameters():
            if "alphas" not in name:
                got = algorithm.supernet.get_parameter(name).grad
                assert (got is None) == (p.grad is None)
                if got is not None:
                    torch.testing.assert_close(got, p.grad, rtol=1e-5, atol=1e-7)

    def test_teacher_runs_once_for_all_sub_graphs(self, start, tiny_batch, monkeypatch):
        from pyfast_nas.algorithms import msg_das

        calls = []
        monkeypatch.setattr(
            msg_das, "teacher_outputs", lambda net, x: calls.append(1) or teacher_outputs(net, x)
        )
        algorithm = start(MSGDAS(kd_warmup=0, alpha_warmup=0))
        algorithm.step(tiny_batch(0), tiny_batch(1))
        assert len(calls) == 1
        algorithm = start(MSGDAS(kd_warmup=0, alpha_warmup=0, kd_in_alpha_step=True))
        metrics = algorithm.step(tiny_batch(0), tiny_batch(1))
        assert len(calls) == 3
        assert "kd/valid_loss" in metrics

    def test_drop_block_is_off_in_the_teacher(self, start, skip_heavy, image_batch, monkeypatch):
        from pyfast_nas.algorithms import msg_das

        seen = []

        def spy(supernet, x):
            blocks = algorithm.drop_blocks
            seen.append((blocks.seed, blocks.rate))
            return teacher_outputs(supernet, x)

        monkeypatch.setattr(msg_das, "teacher_outputs", spy)
        algorithm = start(MSGDAS(kd_warmup=0, alpha_warmup=0, kd_in_alpha_step=True), skip_heavy)
        algorithm.step(image_batch(0), image_batch(1))
        assert seen == [(None, 0.0)] * 2


def test_every_pass_has_masks_of_its_own(start, skip_heavy, image_batch, monkeypatch):
    """Keyed by the seed of the step, the offset of the pass and the number of the sub-graph."""
    algorithm = start(MSGDAS(alpha_warmup=0, paths=3), skip_heavy)
    keys = []
    active = algorithm.drop_blocks.active

    def spy(*, rate, block, seed, path):
        keys.append((rate, block, *seed.tolist(), path))
        return active(rate=rate, block=block, seed=seed, path=path)

    monkeypatch.setattr(algorithm.drop_blocks, "active", spy)
    algorithm.step(image_batch(0), image_batch(1))
    seed = ops.draw_seed(torch.Generator().manual_seed(0)).tolist()[0]
    assert keys == [(0.3, 3, seed, offset, path) for offset in (0, 1) for path in range(3)]


class TestSchedules:
    def run(self, start, tiny_batch, epochs, **options):
        algorithm = start(MSGDAS(**options), epochs=epochs, steps_per_epoch=1)
        rows = []
        for step in range(epochs):
            before = algorithm.alphas["cell"]
            metrics = algorithm.step(tiny_batch(step), tiny_batch(step + 50))
            moved = not torch.equal(before, algorithm.alphas["cell"])
            lr = algorithm.weight_optimizer.param_groups[0]["lr"]
            rows.append((metrics, moved, lr))
        return rows

    def test_ten_epochs(self, start, tiny_batch):
        rows = self.run(start, tiny_batch, 10)
        assert [m["tau"] for m, *_ in rows] == pytest.approx([10 - 1.1 * t for t in range(10)])
        want = [0.3 * (1 - t / 10) for t in range(10)]
        assert [m["drop_rate"] for m, *_ in rows] == pytest.approx(want)
        assert [moved for _, moved, _ in rows] == [False] * 3 + [True] * 7
        assert ["valid/loss" in m for m, *_ in rows] == [False] * 3 + [True] * 7
        assert ["kd/loss" in m for m, *_ in rows] == [False] + [True] * 9
        assert rows[0][2] == 0.025
        assert rows[5][2] == pytest.approx(0.013)

    def test_one_epoch_moves_the_alphas_at_the_highest_temperature(self, start, tiny_batch):
        ((metrics, moved, _),) = self.run(start, tiny_batch, 1)
        assert metrics["tau"] == 10.0
        assert metrics["drop_rate"] == pytest.approx(0.3)
        assert moved
        assert "kd/loss" in metrics

    @pytest.mark.parametrize(
        ("schedule", "want"), [("constant", [0.2] * 3), ("exp", [0.2, 0.16374615, 0.13406401])]
    )
    def test_other_drop_schedules(self, schedule, want, start, tiny_batch):
        rows = self.run(start, tiny_batch, 3, drop_rate=0.2, drop_schedule=schedule)
        assert [m["drop_rate"] for m, *_ in rows] == pytest.approx(want)

    def test_the_score_function_has_no_temperature(self, start, tiny_batch):
        """Neither a metric of it nor a number that depends on it."""
        rows, states = [], []
        for tau in (10.0, 0.3):
            algorithm = start(MSGDAS(relaxation="score", alpha_warmup=0), epochs=1)
            algorithm.tau_max = algorithm.tau_min = tau
            rows.append(algorithm.step(tiny_batch(0), tiny_batch(1)))
            states.append(algorithm.supernet.state_dict())
        assert rows[0] == rows[1] and "tau" not in rows[0]
        assert all(torch.equal(states[1][name], value) for name, value in states[0].items())

    def test_shares_are_of_whole_epochs(self):
        """floor(0.3 * T), for every length whatever the last bit of the product."""
        algorithm = MSGDAS()
        for epochs in range(1, 400):
            algorithm.epochs, algorithm.steps_per_epoch = epochs, 1
            early = 0
            for algorithm.steps in range(epochs):
                early += algorithm._is_early(0.3)
            assert early == 3 * epochs // 10

    def test_block_size_follows_the_image(self):
        assert MSGDAS()._block(torch.empty(1, 3, 32, 32)) == 3
        assert MSGDAS()._block(torch.empty(1, 3, 33, 32)) == 7
        assert MSGDAS(drop_block=5)._block(torch.empty(1, 3, 224, 224)) == 5


def test_more_paths_than_candidates_is_refused(start):
    with pytest.raises(
        ValueError, match="paths must be at most the candidates of every row, 2, got 3"
    ):
        start(MSGDAS(paths=3))


def test_one_draw_of_the_generator_per_step(start, tiny_batch):
    algorithm = start(MSGDAS(alpha_warmup=0))
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        algorithm.step(tiny_batch(step), tiny_batch(step + 9))
        ops.draw_seed(generator)
        assert torch.equal(algorithm.generator.get_state(), generator.get_state())

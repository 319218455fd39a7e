"""The curvature monitor: what it measures, when it stops, how it goes back."""

import copy

import pytest
import torch

from pyfast_nas.algorithms import DARTS, MSGDAS
from pyfast_nas.data import toy_data
from pyfast_nas.engine import search
from pyfast_nas.engine.callbacks import EpochEnd, GoBack, Stop
from pyfast_nas.engine.curvature import CurvatureMonitor, local_averages
from pyfast_nas.errors import ConfigError
from pyfast_nas.spaces import Toy


def judged(curve, **options):
    """Epoch at which the monitor decides on a given curve, and what it decides."""
    monitor = CurvatureMonitor(action="stop", **options)
    monitor.measure = lambda end: curve(end.epoch)
    for epoch in range(1, 101):
        end = EpochEnd(epoch=epoch, algorithm=None, genotype=None, valid=None, row={})
        if decision := monitor(end):
            return epoch, decision
    return None


class TestRule:
    """The worked examples of the rule, with the constants of the paper's code."""

    def test_growth_after_epoch_18(self):
        epoch, decision = judged(lambda t: 0.2 * 1.1 ** max((t - 18) // 2, 0))
        assert (epoch, decision.epoch) == (28, 16) and isinstance(decision, Stop)

    def test_growth_from_the_start(self):
        epoch, decision = judged(lambda t: 0.2 * 1.08 ** (t // 2))
        assert (epoch, decision.epoch) == (22, 10)

    @pytest.mark.parametrize("curve", [lambda t: 0.2, lambda t: -0.2 * 1.1**t, lambda t: 9.0 / t])
    def test_no_growth_no_end(self, curve):
        assert judged(curve) is None

    def test_nothing_before_the_earliest_epoch(self):
        epoch, decision = judged(lambda t: 1.5**t, earliest=30)
        assert decision.epoch == 30 and epoch == 42

    def test_extra_epochs(self):
        epoch, decision = judged(lambda t: 0.2 * 1.08 ** (t // 2), extra=3)
        assert (epoch, decision.epoch) == (22, 7)

    def test_averages(self):
        assert local_averages([1.0, 3.0, 5.0, 7.0], 2) == [None, None, 4.0, 6.0]
        assert local_averages([1.0, 3.0, 5.0], 5) == [None, None, 3.0]


def prepared(algorithm=None, dtype=torch.float64):
    torch.manual_seed(0)
    space, algorithm = Toy(), algorithm or DARTS()
    algorithm.prepare(space.supernet().to(dtype), space=space, epochs=1, steps_per_epoch=1)
    batch = torch.randn(32, 8, dtype=dtype), torch.randint(2, (32,))
    return EpochEnd(epoch=2, algorithm=algorithm, genotype=None, valid=batch, row={})


def dense(end):
    """All of the Hessian, row by row."""
    algorithm = end.algorithm
    (alpha,) = algorithm.alpha_parameters
    loss = algorithm.bilevel_problem().valid_loss(end.valid)
    (gradient,) = torch.autograd.grad(loss, alpha, create_graph=True)
    rows = [
        torch.autograd.grad(g, alpha, retain_graph=True)[0].flatten() for g in gradient.flatten()
    ]
    return torch.linalg.eigvalsh(torch.stack(rows))


class TestMeasurement:
    @pytest.mark.parametrize(("exact", "rel"), [(True, 1e-9), (False, 1e-3)])
    def test_it_is_the_largest_eigenvalue(self, exact, rel):
        end = prepared()
        with torch.no_grad():
            end.algorithm.alpha_parameters[0].normal_()
        monitor = CurvatureMonitor(exact=exact)
        assert monitor.measure(end) == pytest.approx(float(dense(end)[-1]), rel=rel)

    def test_the_decay_of_the_alphas_is_added_on_request(self):
        end = prepared()
        plain, shifted = (
            CurvatureMonitor(add_alpha_decay=add).measure(end) for add in (False, True)
        )
        assert shifted - plain == pytest.approx(1e-3, rel=1e-6)

    def test_fewer_samples(self):
        end = prepared()
        few = CurvatureMonitor(samples=4, exact=True).measure(end)
        cut = EpochEnd(epoch=2, algorithm=end.algorithm, genotype=None, row={},
                       valid=tuple(t[:4] for t in end.valid))  # fmt: skip
        assert few == pytest.approx(float(dense(cut)[-1]), rel=1e-9)

    def test_it_leaves_no_trace(self):
        options = {"epochs": 3, "batch_size": 64}
        plain = search("toy", toy_data(256), **options)
        watched = search("toy", toy_data(256), callbacks=[CurvatureMonitor(interval=1)], **options)
        assert all(torch.equal(plain.alphas[t], watched.alphas[t]) for t in plain.alphas)
        for row, other in zip(plain.history, watched.history, strict=True):
            assert {k: v for k, v in other.items() if "curvature" not in k} == row
            assert "curvature" in other
        assert ["curvature_average" in row for row in watched.history] == [False, False, True]


class TestGoingBack:
    @staticmethod
    def monitor(**options):
        monitor = CurvatureMonitor(
            action="go_back", interval=1, window=1, lag=1, earliest=1, **options
        )
        monitor.measure = lambda end: 2.0**end.epoch
        return monitor

    def test_state_and_decay(self):
        """The search goes on from the state of the earlier epoch, with three times the decay."""
        states, decisions = {}, []
        monitor = self.monitor()

        def look(end):
            net, algorithm = end.algorithm.supernet, end.algorithm
            states[end.epoch] = copy.deepcopy((net.state_dict(), algorithm.state_dict()))
            decision = monitor(end)
            if decision is not None:
                decisions.append((end.epoch, decision))
                now = net.state_dict(), algorithm.state_dict()
                then = states[decision.epoch]
                assert all(torch.equal(now[0][key], then[0][key]) for key in then[0])
                assert now[1]["steps"] == then[1]["steps"]
                assert [g["weight_decay"] for g in algorithm.weight_optimizer.param_groups] == [
                    9e-4
                ]
                monitor.action = "watch"
            return decision

        result = search("toy", toy_data(256), epochs=6, batch_size=64, callbacks=[look])
        ((epoch, decision),) = decisions
        assert (epoch, decision.epoch) == (4, 3) and isinstance(decision, GoBack)
        assert "weight decay of 0.0009" in decision.reason
        assert [row["epoch"] for row in result.history] == list(range(1, 7))

    def test_growth_soon_after_a_return(self):
        """Older states than those that led to the first return are gone; the oldest left serves."""
        values = iter([1.0] * 16 + [3.0] + [1.0] * 2 + [60.0] + [1.0] * 20)
        monitor = CurvatureMonitor(action="go_back", decay_limit=1.0)
        monitor.measure = lambda end: next(values)
        went = []

        def look(end):
            decision = monitor(end)
            if decision is not None:
                went.append((end.epoch, decision.epoch))
            return decision

        search("toy", toy_data(256), epochs=36, batch_size=128, callbacks=[look])
        assert len(went) >= 2 and all(target < epoch for epoch, target in went)
        assert went[1][1] <= went[0][1]

    def test_a_monitor_that_is_used_again_starts_afresh(self):
        monitor = CurvatureMonitor(interval=1)
        monitor.measure = lambda end: 1.0
        for _ in range(2):
            search("toy", toy_data(256), epochs=2, batch_size=128, callbacks=[monitor])
        assert [epoch for epoch, _ in monitor.measured] == [1, 2]

    def test_it_ends_where_the_decay_would_be_too_large(self):
        monitor = self.monitor(decay_limit=5e-4)
        result = search("toy", toy_data(256), epochs=6, batch_size=64, callbacks=[monitor])
        assert result.epoch == 3 and len(result.history) == 4
        assert any("beyond 0.0005" in sentence for sentence in result.warnings)

    def test_no_more_states_are_kept_than_can_be_asked_for(self):
        monitor = CurvatureMonitor(action="go_back")
        monitor.measure = lambda end: 1.0
        search("toy", toy_data(256), epochs=20, batch_size=64, callbacks=[monitor])
        assert min(monitor._kept) == 20 - 12 and len(monitor._kept) == 13


class TestSearch:
    def test_options_of_a_search(self, tmp_path):
        result = search(
            "toy",
            toy_data(256),
            epochs=4,
            batch_size=64,
            curvature_interval=2,
            output=tmp_path / "a",
        )
        assert ["curvature" in row for row in result.history] == [False, True, False, True]
        assert "Largest eigenvalue" in result.report().read_text()

    def test_an_algorithm_without_such_a_loss_is_refused_at_once(self):
        with pytest.raises(ConfigError, match="curvature_interval must be 0 with 'msg-das'"):
            search("toy", toy_data(256), algorithm=MSGDAS(), epochs=4, curvature_interval=2)
        with pytest.raises(ConfigError, match="algorithm must have a loss in its architecture"):
            CurvatureMonitor().measure(prepared(MSGDAS()))

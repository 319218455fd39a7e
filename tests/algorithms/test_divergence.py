"""A search whose logits are NaN ends in DivergenceError, where the sampler refuses late too."""

import math

import pytest
import torch

from pyfast_nas import ops
from pyfast_nas.algorithms import GDAS, MSGDAS, ProxylessNAS
from pyfast_nas.algorithms.binary_gates import hold_the_others, pair_gates
from pyfast_nas.algorithms.sub_graphs import draw_sub_graphs, plackett_luce_log_prob
from pyfast_nas.errors import DivergenceError
from pyfast_nas.nn import GateOutput, GumbelTopK

AT_ONCE = {"alpha_interval": 1, "alpha_warmup": 0.0, "alpha_rest": 0}
SEARCHES = {
    "gdas": GDAS,
    "msg-das": lambda: MSGDAS(alpha_warmup=0, kd_warmup=0, assignment="shuffle"),
    "msg-das joint": lambda: MSGDAS(alpha_warmup=0, mode="joint", relaxation="conditional"),
    "msg-das score": lambda: MSGDAS(alpha_warmup=0, relaxation="score"),
    "proxylessnas": lambda: ProxylessNAS(**AT_ONCE),
    "proxylessnas full": lambda: ProxylessNAS(gradient="full", **AT_ONCE),
    "proxylessnas two": lambda: ProxylessNAS(gradient="two", **AT_ONCE),
    "proxylessnas rewards": lambda: ProxylessNAS(gradient="reinforce", samples=2, **AT_ONCE),
}
SEED = torch.tensor([0, 0])


@pytest.fixture
def refused_late(monkeypatch):
    """Let the sampler refuse as on a GPU: nobody waits, and rows get indices of -1."""
    sample = ops.gumbel_topk

    def sample_late(logits, k, **options):
        refused = ~(logits.detach() < math.inf).all(1, keepdim=True)
        weights, indices = sample(logits.masked_fill(refused, 0.0), k, **options)
        return weights.masked_fill(refused, 0.0), indices.masked_fill(refused, -1)

    monkeypatch.setattr(ops, "gumbel_topk", sample_late)


@pytest.fixture(params=SEARCHES)
def diverged(request, start, small_darts):
    """A search of which one logit is NaN, as a step on pairs leaves it."""
    algorithm = start(SEARCHES[request.param](), small_darts)
    with torch.no_grad():
        algorithm.supernet.alphas["normal"][1, 2] = math.nan
    return algorithm


@pytest.mark.parametrize("late", [False, True])
def test_a_step_says_so_and_moves_nothing(late, diverged, image_batch, snapshot, request):
    if late:
        request.getfixturevalue("refused_late")
    before = snapshot(diverged, alphas=True)
    with pytest.raises(DivergenceError, match=r"alphas\['normal'\] must be finite, got nan"):
        diverged.step(image_batch(0), image_batch(1))
    after = snapshot(diverged, alphas=True)
    assert {name for name in before if before[name] != after[name]} <= {"optimizer", "entries"}


def test_a_step_that_the_device_makes_alone_goes_on(diverged, refused_late, image_batch):
    """No index of -1 reaches a gather or scatter: on a GPU that would end the process."""
    for step in range(2):
        diverged.start_step()
        metrics = diverged.run_step(image_batch(step), image_batch(step + 9))
        diverged.finish_step()
    if isinstance(diverged, ProxylessNAS):
        assert metrics["alpha/gradient_norm"].isnan()
    with pytest.raises(DivergenceError, match="derive: alphas"):
        diverged.derive()


class TestIndicesOfRefusedRows:
    LOGITS = torch.tensor([[0.3, -0.2, 0.1], [0.5, math.nan, 0.2]])

    def draw(self, **options):
        return draw_sub_graphs({"cell": self.LOGITS}, 2, tau=1.0, seed=SEED, **options)

    def test_the_host_refuses_them(self, refused_late):
        with pytest.raises(ValueError, match=r"alphas must hold no NaN.* 2 candidates.* row 1"):
            self.draw()
        with pytest.raises(ValueError, match="active must be candidates from 0 on, got -1"):
            GumbelTopK(2)(self.LOGITS, SEED)
        with pytest.raises(ValueError, match="active must be candidates from 0 on, got -2"):
            GateOutput(torch.ones(1, 2), ((1, -2),))

    def test_log_probabilities_are_not_finite(self, refused_late):
        found = plackett_luce_log_prob(self.LOGITS, self.draw(on_device=True).indices)
        assert found.isfinite().tolist() == [True, False]

    def test_gates_of_all_that_run_leave_them_out(self, refused_late):
        gate = self.draw(on_device=True).mixed_gates()["cell"]
        assert gate.selected.sum(1).tolist() == [2, 0]
        assert gate.weights[0].count_nonzero() == 2 and not gate.weights[1].any()

    def test_pairs_are_not_finite_there_and_as_ever_elsewhere(self, refused_late):
        drawn = self.draw(on_device=True)
        p = pair_gates({"cell": self.LOGITS}, drawn, SEED).probabilities["cell"]
        want = self.LOGITS[0, drawn.indices[0]].softmax(0)
        torch.testing.assert_close(p[0, drawn.indices[0]], want)
        assert p.isnan().any(1).tolist() == [False, True]

    def test_what_is_held_beside_pairs(self, refused_late):
        pairs, moved = self.draw(on_device=True).indices, self.LOGITS + torch.arange(3)
        both, one = moved.clone(), moved[:1].clone()
        hold_the_others({"cell": both}, {"cell": self.LOGITS}, pairs)
        hold_the_others({"cell": one}, {"cell": self.LOGITS[:1]}, pairs[:1])
        torch.testing.assert_close(both[:1], one)
        assert both.isnan().any(1).tolist() == [False, True]


def test_nothing_is_to_be_forgotten_where_refusals_are_at_once():
    with pytest.raises(ValueError, match="NaN"):
        ops.gumbel_topk(torch.full((2, 3), math.nan), 1, tau=1.0, seed=SEED)
    assert not ops.forget_refusals("cpu")

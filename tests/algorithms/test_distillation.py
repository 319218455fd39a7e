"""Supernet guidance: known answers of the loss, and a teacher that leaves nothing behind."""

import weakref

import pytest
import torch
from torch import nn

from pyfast_nas.algorithms.distillation import distillation_loss, teacher_outputs
from pyfast_nas.nn import MixedOp, Supernet
from pyfast_nas.nn.mixed_op import mix_edges

TEACHER = torch.tensor([[2.0, 0.5, -1.0]], dtype=torch.float64)
STUDENT = torch.tensor([[1.0, 1.0, -0.5]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("temperature", "want"), [(1.0, 0.236000440), (2.0, 0.278193257), (4.0, 0.275566224)]
)
def test_known_answers(temperature, want):
    loss = distillation_loss(STUDENT, TEACHER, temperature)
    assert loss.item() == pytest.approx(want, abs=1e-8)


def test_mean_over_the_batch_and_no_gradient_to_the_teacher():
    student = torch.cat([STUDENT, TEACHER]).requires_grad_()
    teacher = torch.cat([TEACHER, TEACHER]).requires_grad_()
    loss = distillation_loss(student, teacher)
    assert loss.item() == pytest.approx(0.236000440 / 2, abs=1e-8)
    loss.backward()
    assert teacher.grad is None
    want = (student.softmax(1) - teacher.softmax(1)) / 2
    torch.testing.assert_close(student.grad, want, rtol=1e-10, atol=1e-12)


class Wide(Supernet):
    """One row of many equal candidates."""

    def __init__(self, width: int) -> None:
        names = [f"linear{k}" for k in range(width)]
        super().__init__({"cell": [names]}, alpha_scale=1.0)
        self.norm = nn.BatchNorm1d(4)
        self.edge = MixedOp({name: nn.Linear(4, 4) for name in names})

    def mix(self, x, gates):
        return mix_edges([self.edge], [self.norm(x)], gates["cell"])


@pytest.mark.parametrize("width", [2, 8])
def test_teacher_equals_the_naive_sum_and_leaves_no_trace(width, freeze):
    torch.manual_seed(0)
    supernet, x = Wide(width).double(), torch.randn(5, 4, dtype=torch.float64)
    before = freeze(supernet.state_dict())
    alive, peak = weakref.WeakSet(), 0

    def count(module, inputs, output):
        nonlocal peak
        alive.add(output)
        peak = max(peak, len(alive))

    for candidate in supernet.edge.candidates.values():
        candidate.register_forward_hook(count)
    outputs = teacher_outputs(supernet, x)
    assert not outputs.requires_grad
    assert outputs.grad_fn is None
    assert freeze(supernet.state_dict()) == before
    assert peak <= 2, "candidate outputs do not pile up"

    probabilities = supernet.alphas["cell"].detach().softmax(1)[0]
    normed = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    naive = sum(
        p * candidate(normed)
        for p, candidate in zip(probabilities, supernet.edge.candidates.values(), strict=True)
    )
    torch.testing.assert_close(outputs, naive, rtol=1e-10, atol=1e-12)


def test_teacher_ignores_padded_candidates(tiny_space, tiny_batch):
    torch.manual_seed(0)
    supernet = tiny_space.supernet().eval()
    inputs, _ = tiny_batch(0)
    with torch.no_grad():
        supernet.alphas["cell"][1, 2] = 100.0  # past the end of the second row
    reference = teacher_outputs(supernet, inputs)
    with torch.no_grad():
        supernet.alphas["cell"][1, 2] = 0.0
    assert torch.equal(teacher_outputs(supernet, inputs), reference)

"""A hypergradient changes nothing: weights, gradients, buffers, random streams, optimizer."""

import gc
import weakref

import pytest
import torch

from pyfast_nas import hypergradients as hg

# torch's own forward-mode tables are still compiled by torch.jit.script on first use.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
METHODS = {
    "first order": (hg.first_order, {}),
    "published": (hg.finite_difference, {}),
    "published, after the step": (hg.finite_difference, {"mixed_at": "unrolled"}),
    "one step": (hg.unrolled, {}),
    "one step, clipped": (hg.unrolled, {"clip": 0.1}),
    "three steps": (hg.unrolled, {"steps": 3, "last": 2}),
    "Neumann": (hg.neumann, {"check_gamma": False}),
    "Neumann, differences": (hg.neumann, {"hvp": "finite_difference"}),
    "Neumann, tangents": (hg.neumann, {"hvp": "forward_over_reverse"}),
    "CG": (hg.conjugate_gradient, {"damping": 3.0}),
    "normal CG": (hg.conjugate_gradient, {"damping": 3.0, "normal_equations": True}),
    "Nystrom": (hg.nystrom, {"columns": [0, 7, 20]}),
    "identity": (hg.identity, {}),
    "exact": (hg.exact, {"damping": 3.0}),
}


@pytest.fixture(params=METHODS)
def method(request):
    estimator, options = METHODS[request.param]
    return lambda problem, train, valid: estimator(problem, train, valid, **options)


@pytest.fixture
def counting(smooth):
    model, problem = smooth(norm=True, dropout=0.3)
    model.drop.eval()
    # One gradient is there, one is not; one layer is in another mode than the rest.
    model.first.weight.grad = torch.ones_like(model.first.weight)
    return model, problem


@pytest.mark.promise("S1")
def test_everything_is_as_before(method, counting, batch, snapshot):
    model, problem = counting
    model.drop.train()
    before = snapshot(model, problem)
    gradients = method(problem, batch(1), batch(2))
    assert snapshot(model, problem) == before
    assert all(g.isfinite().all() and not g.requires_grad for g in gradients)


@pytest.mark.promise("S1")
def test_momentum_that_is_not_there_is_not_made(method, smooth, batch, snapshot):
    model, problem = smooth(norm=True)
    problem.weight_optimizer.optimizer.state.clear()
    before = snapshot(model, problem)
    method(problem, batch(1), batch(2))
    assert snapshot(model, problem) == before
    assert before["entries"] == 0


class Fault:
    """Raises in the n-th pass forward or backward through a layer."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.kind = (RuntimeError, KeyboardInterrupt, torch.OutOfMemoryError, ValueError)[at % 4]

    def count(self, *_):
        self.left -= 1
        if self.left == -1:
            raise self.kind("planted")

    def forward(self, module, inputs, output):
        self.count()
        if output.requires_grad:
            output.register_hook(self.count)


@pytest.mark.promise("S2")
@pytest.mark.parametrize("name", [name for name in METHODS if name != "exact"])
def test_an_exception_in_any_evaluation_leaves_everything(name, counting, batch, snapshot):
    estimator, options = METHODS[name]
    model, problem = counting
    before = snapshot(model, problem)
    at, faults = 0, 0
    while True:
        fault = Fault(at)
        handles = [layer.register_forward_hook(fault.forward) for layer in (model.first, model)]
        try:
            estimator(problem, batch(1), batch(2), **options)
        except fault.kind as error:
            assert "planted" in str(error)
            faults += 1
        else:
            break
        finally:
            for handle in handles:
                handle.remove()
        assert snapshot(model, problem) == before, f"trace of a fault at call {at}"
        at += 1
    assert faults >= 3


@pytest.mark.promise("S4")
def test_statistics_never_see_a_pass(method, counting, batch):
    model, problem = counting
    count = int(model.norm.num_batches_tracked)
    method(problem, batch(1), batch(2))
    assert int(model.norm.num_batches_tracked) == count


def test_a_buffer_that_a_layer_replaces_is_put_back(smooth, batch):
    model, problem = smooth(norm=True)

    def replace(module, *_):
        module.running_mean = module.running_mean + 1

    handle = model.norm.register_forward_hook(replace)
    mean = model.norm.running_mean
    values = mean.clone()
    hg.finite_difference(problem, batch(1), batch(2))
    handle.remove()
    assert model.norm.running_mean is mean
    assert torch.equal(mean, values)


@pytest.mark.promise("S5")
def test_the_virtual_step_shares_no_storage_with_the_weights(smooth, batch, monkeypatch):
    """The stepped weights are new tensors, and nothing of them is left afterwards."""
    _, problem = smooth()
    seen = []
    step = problem.inner.step

    def spy(weights, gradients):
        new, pull = step(weights, gradients)
        own = {w.data_ptr() for w in problem.weights}
        assert not own & {t.data_ptr() for t in (*weights, *new)}
        assert not {t.data_ptr() for t in weights} & {t.data_ptr() for t in new}
        seen.extend(weakref.ref(t) for t in (*weights, *new))
        return new, pull

    monkeypatch.setattr(problem.inner, "step", spy)
    hg.unrolled(problem, batch(1), batch(2))
    gc.collect()
    assert seen
    assert all(ref() is None for ref in seen)


def test_works_where_gradients_are_off(method, counting, batch):
    _, problem = counting
    on = method(problem, batch(1), batch(2))
    with torch.no_grad():
        off = method(problem, batch(1), batch(2))
        assert not torch.is_grad_enabled()
    assert all(torch.equal(a, b) for a, b in zip(on, off, strict=True))


def test_drawn_columns_move_the_stream_that_is_asked(counting, batch, snapshot):
    model, problem = counting
    before = snapshot(model, problem)
    generator = torch.Generator().manual_seed(3)
    (first,) = hg.nystrom(problem, batch(1), batch(2), rank=2, generator=generator)
    assert snapshot(model, problem) == before
    size = sum(weight.numel() for weight in problem.weights)
    columns = torch.randperm(size, generator=torch.Generator().manual_seed(3))[:2].tolist()
    (second,) = hg.nystrom(problem, batch(1), batch(2), columns=columns)
    assert torch.equal(first, second)
    hg.nystrom(problem, batch(1), batch(2), rank=2)
    after = snapshot(model, problem)
    assert {key for key in after if after[key] != before[key]} == {"torch"}


@pytest.mark.promise("K24")
@pytest.mark.parametrize("name", ["published", "three steps", "Neumann", "Neumann, tangents", "CG"])
def test_nothing_is_kept_from_one_call_to_the_next(name, smooth, batch):
    """As many live tensors after five calls as after two."""
    estimator, options = METHODS[name]
    _, problem = smooth(norm=True)

    def live() -> int:
        gc.collect()
        return sum(1 for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))

    data = batch(1), batch(2)
    for _ in range(2):
        estimator(problem, *data, **options)
    early = live()
    for _ in range(3):
        estimator(problem, *data, **options)
    assert live() == early

"""Mistakes that others shipped, planted one by one: the check that names each must fail.

Numbers are those of the list of bug classes that the suite must catch.
"""

import contextlib
import importlib

import pytest
import torch

from pyfast_nas import hypergradients as hg
from pyfast_nas.errors import DivergenceError
from pyfast_nas.hypergradients import inner_optimizer, problem, products, vectors
from pyfast_nas.ops import tensor_list
from tests.hypergradients import (
    conftest,
    test_golden,
    test_implicit,
    test_inner_optimizer,
    test_leaves_no_trace,
    test_products,
    test_unrolled,
)

# torch's own forward-mode tables are still compiled by torch.jit.script on first use.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
# The package's attribute of that name is the function.
STEPS = importlib.import_module("pyfast_nas.hypergradients.unrolled")
SMOOTH, BATCH, LIKE, DISTANCE = conftest.smooth, conftest.batch, conftest.like, conftest.distance


# The checks, each called as pytest would call it.


def difference_converges():
    check = test_products.test_error_of_the_difference_falls_with_the_square_of_the_radius
    check("aw", {}, SMOOTH, BATCH, LIKE, DISTANCE)


def difference_is_close():
    check = test_products.test_finite_difference_is_close_on_smooth_nets
    check(torch.float64, {}, SMOOTH, BATCH, LIKE, DISTANCE)


def length_does_not_matter():
    check = test_products.test_difference_does_not_know_the_length_of_the_vector
    check(SMOOTH, BATCH, LIKE, DISTANCE)


def zero_is_zero():
    test_products.test_zero_gives_zero("finite_difference", SMOOTH, BATCH, conftest.snapshot)


def published_value():
    test_golden.test_value_of_the_published_step("one step", conftest.quadratic)


def published_figure():
    test_golden.test_figure_2(0.5, 2.0, 1.0, hg.finite_difference, conftest.figure)


def momentum_and_decay():
    test_golden.test_figure_2_with_momentum(hg.finite_difference, conftest.figure)


def written_out():
    check = test_unrolled.test_unrolled_is_autograd_through_the_steps
    check("heavy ball", 1, 1, True, SMOOTH, BATCH, DISTANCE)


def counting():
    model, made = SMOOTH(norm=True, dropout=0.3)
    model.drop.eval()
    return model, made


def method(made, train, valid):
    return hg.finite_difference(made, train, valid)


def no_trace():
    test_leaves_no_trace.test_everything_is_as_before(method, counting(), BATCH, conftest.snapshot)


def no_trace_of_faults():
    test_leaves_no_trace.test_an_exception_in_any_evaluation_leaves_everything(
        "published", counting(), BATCH, conftest.snapshot
    )


def no_statistics():
    test_leaves_no_trace.test_statistics_never_see_a_pass(method, counting(), BATCH)


def same_masks():
    test_products.test_two_evaluations_without_a_step_are_identical(SMOOTH, BATCH)


def own_storage():
    with pytest.MonkeyPatch.context() as patch:
        test_leaves_no_trace.test_the_virtual_step_shares_no_storage_with_the_weights(
            SMOOTH, BATCH, patch
        )


def no_new_entries():
    test_leaves_no_trace.test_momentum_that_is_not_there_is_not_made(
        method, SMOOTH, BATCH, conftest.snapshot
    )


def once_is_refused():
    test_products.test_a_layer_that_is_differentiable_once_is_refused()


def krylov():
    test_implicit.test_conjugate_gradients_are_best_in_every_krylov_space(conftest.spd)


def terms_of_the_series():
    test_golden.test_value_at_the_optimum("Neumann 0.2 2", conftest.quadratic)


def factor_of_dampening():
    test_inner_optimizer.test_factor_of_each_form_of_momentum(
        {"momentum": 0.9, "dampening": 0.25}, True, -0.1 * 0.75
    )


# The mistakes.


def once_differentiable_unseen(patch):
    patch.setattr(products, "require_twice_differentiable", lambda gradients: None)


class DetachedTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.detach())
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 - torch.tanh(ctx.saved_tensors[0]).square())


def detached_backward(patch):
    patch.setattr(torch.Tensor, "tanh", lambda x: DetachedTanh.apply(x))


def missing_bracket(patch):
    def difference(plus, minus, step):
        return [(p - n) / 2 * step for p, n in zip(plus, minus, strict=True)]

    patch.setattr(vectors, "difference", difference)


def radius_alone(patch):
    patch.setattr(vectors, "step_size", lambda direction, radius: torch.tensor(radius))


def unguarded_norm(patch):
    patch.setattr(vectors, "step_size", lambda direction, radius: radius / vectors.norm(direction))


@contextlib.contextmanager
def never_restored(tensors):
    yield [tensor.detach().clone() for tensor in tensors]


@contextlib.contextmanager
def restored_without_finally(tensors):
    start = [tensor.detach().clone() for tensor in tensors]
    yield start
    vectors.copy_(tensors, start)


@contextlib.contextmanager
def restored_by_a_stale_variable(tensors):
    start = [tensor.detach().clone() for tensor in tensors]
    try:
        yield start
    finally:
        for tensor in tensors:
            with torch.no_grad():
                tensor.copy_(start[-1].flatten()[0].expand_as(tensor))


@contextlib.contextmanager
def restored_by_arithmetic(tensors):
    start = [tensor.detach().clone() for tensor in tensors]
    try:
        yield start
    finally:
        with torch.no_grad():
            for tensor, was in zip(tensors, start, strict=True):
                tensor += (was - tensor) / 3 * 3


@contextlib.contextmanager
def without_a_copy(tensors):
    yield [tensor.detach() for tensor in tensors]


def restoring(how):
    def plant(patch):
        for module in (problem, products, STEPS):
            patch.setattr(module, "moved", how)

    return plant


def counted_statistics(patch):
    patch.setattr(problem, "untouched", lambda model: contextlib.nullcontext())


def fresh_masks(patch):
    patch.setattr(problem, "replayed_streams", lambda device: contextlib.nullcontext())


def step_in_place(patch):
    step = inner_optimizer.InnerOptimizer.step

    def shared(self, weights, gradients):
        new, pull = step(self, weights, gradients)
        vectors.copy_(weights, new)
        return list(weights), pull

    patch.setattr(inner_optimizer.InnerOptimizer, "step", shared)


def defaults_instead_of_the_state(patch):
    def fresh(self):
        return [None] * len(self.weights)

    patch.setattr(inner_optimizer.InnerOptimizer, "buffers", fresh)


def indexed_state(patch):
    patch.setattr(
        inner_optimizer.InnerOptimizer,
        "_state",
        lambda self, place: self.optimizer.state[self.weights[place]],
    )


def mixed_after_the_step(patch):
    one_step = STEPS.one_step

    def wrong(*arguments, **options):
        return one_step(*arguments, **options | {"mixed_at": "unrolled"})

    patch.setattr(STEPS, "one_step", wrong)


def no_mixed_term(patch):
    patch.setattr(
        products.HessianProducts, "aw", lambda self, u: vectors.zeros_like(self.problem.alphas)
    )


def old_residual(patch):
    step = tensor_list.cg_step_

    def wrong(solution, residual, direction, product, state):
        before = [r.clone() for r in residual]
        step(solution, residual, direction, product, state)
        # The direction that the old residual gives in place of the new one.
        for p, old, new in zip(direction, before, residual, strict=True):
            p += old - new

    patch.setattr(tensor_list, "cg_step_", wrong)


def unscaled_residual(patch):
    step = tensor_list.cg_step_

    def wrong(solution, residual, direction, product, state):
        before = [r.clone() for r in residual]
        step(solution, residual, direction, product, state)
        for r, old in zip(residual, before, strict=True):
            r.copy_(old + 0.1 * (r - old))

    patch.setattr(tensor_list, "cg_step_", wrong)


def one_term_less(patch):
    patch.setattr(vectors, "neumann_step_", lambda series, term, product, gamma: None)


def forgotten_dampening(patch):
    pull = inner_optimizer.InnerOptimizer.sgd_pull

    def wrong(self, *arguments):
        for group in self.optimizer.param_groups:
            group["dampening"] = 0.0
        return pull(self, *arguments)

    patch.setattr(inner_optimizer.InnerOptimizer, "sgd_pull", wrong)


PLANTED = {
    "1 differentiable once, unseen": (once_differentiable_unseen, once_is_refused),
    "2 backward of detached tensors": (detached_backward, difference_is_close),
    "3 missing bracket, against exact": (missing_bracket, difference_converges),
    "3 missing bracket, in the published step": (missing_bracket, published_value),
    "4 radius not over the norm": (radius_alone, length_does_not_matter),
    "4 norm unguarded": (unguarded_norm, zero_is_zero),
    "5 not restored": (restoring(never_restored), no_trace),
    "5 restored unless something raises": (restoring(restored_without_finally), no_trace_of_faults),
    "5 restored by a stale variable": (restoring(restored_by_a_stale_variable), no_trace),
    "5 restored by arithmetic": (restoring(restored_by_arithmetic), no_trace),
    "6 statistics move": (counted_statistics, no_statistics),
    "6 statistics move, by the snapshot": (counted_statistics, no_trace),
    "7 other masks": (fresh_masks, same_masks),
    "7 other masks, by the snapshot": (fresh_masks, no_trace),
    "8 the step shares storage": (step_in_place, own_storage),
    "8 the copy is none": (restoring(without_a_copy), own_storage),
    "8 default options": (defaults_instead_of_the_state, momentum_and_decay),
    "8 the optimizer gets empty entries": (indexed_state, no_new_entries),
    "9 evaluated after the step": (mixed_after_the_step, written_out),
    "no mixed term": (no_mixed_term, published_figure),
    "CG: direction of the old residual": (old_residual, krylov),
    "CG: residual of another scale": (unscaled_residual, krylov),
    "Neumann: terms left out": (one_term_less, terms_of_the_series),
    "dampening left out": (forgotten_dampening, factor_of_dampening),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_check_sees_the_mistake(name, monkeypatch):
    plant, check = PLANTED[name]
    check()
    with monkeypatch.context() as patch:
        plant(patch)
        with pytest.raises((AssertionError, DivergenceError, pytest.fail.Exception)):
            check()
    check()

"""Lists of tensors: values, storage, layouts, dtypes, memory, aliases and repeatability."""

import copy
import itertools
import threading

import pytest
import torch
from torch.library import opcheck

from pyfast_nas.ops import tensor_list
from pyfast_nas.testing import DTYPES, LAYOUTS, TOLERANCE, arrange, nan_poison, relative_error
from tests.ops.list_cases import (
    OPERATIONS,
    SHAPES,
    STORAGE,
    check_against_float64,
    flat,
    make,
    stored,
    truth,
    whole,
)

every_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=str)


@pytest.mark.promise("K1")
@pytest.mark.promise("K2")
@every_operation
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(operation, dtype, instruction_set):
    for storage in STORAGE:
        check_against_float64(operation, dtype, storage)


@pytest.mark.promise("K1")
@every_operation
def test_scalars_are_numbers_or_tensors(operation, backend):
    for scalar in (
        0,
        -2,
        0.5,
        torch.tensor(0.5),
        torch.tensor(-1.5).double(),
        torch.tensor(0.25).half(),
    ):
        check_against_float64(operation, torch.float32, scalar=scalar)


@pytest.mark.promise("K1")
@every_operation
def test_more_tensors_than_one_launch_takes(operation, backend):
    shapes = [(1 + 7 * k % 13,) for k in range(400)]
    for storage in ("apart", "flat", "read flat"):
        check_against_float64(operation, torch.float32, storage, shapes=shapes)


@pytest.mark.promise("K9")
@every_operation
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_does_not_matter(operation, layout, backend):
    shapes = ((2, 3, 5, 7), (33,), (5, 6), (4, 16, 8, 8))
    lists = make(operation.count, shapes=shapes)
    where = [*range(operation.count), "all"]
    for place in where:
        moved = [[x.clone() for x in tensors] for tensors in lists]
        for index, tensors in enumerate(moved):
            is_written = index < operation.written
            if place in (index, "all") and not (is_written and layout == "expanded"):
                moved[index] = [arrange(x, layout) for x in tensors]
        dense = [[x.clone(memory_format=torch.contiguous_format) for x in some] for some in moved]
        got, want = operation.run(moved), operation.run(dense)
        for one, other in zip(got, want, strict=True):
            assert relative_error(one, other) <= TOLERANCE[torch.float32]
        if operation.written and operation.name != "cg_step_":
            assert all(map(torch.equal, got, want))


@pytest.mark.promise("K9")
def test_channels_last_beside_contiguous_in_flat_storage(backend):
    for shape in ((2, 3, 5, 7), (4, 16, 8, 8)):
        x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        us = tensor_list.flat_like([x, torch.ones(3)])
        assert us[0].stride() == x.stride()
        tensor_list.axpy_(us, 1.0, [x.contiguous(), torch.ones(3)])
        assert torch.equal(us[0], x) and us[1].tolist() == [1.0] * 3


@pytest.mark.promise("K11")
def test_nothing_but_empty_tensors(backend):
    for storage in ("apart", "flat"):
        for operation in OPERATIONS:
            lists = stored(
                [[torch.ones(0), torch.ones(2, 0)]] * operation.count, storage, operation
            )
            results = operation.run(lists)
            assert [x.shape for x in results[: 2 * operation.written]] == [(0,), (2, 0)] * (
                operation.written
            )
    assert float(tensor_list.norm([torch.ones(0)])) == 0.0


@pytest.mark.promise("K13")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
# In conjugate gradients one such value spoils every number of the state.
@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.name != "cg_step_"], ids=str)
def test_nan_and_infinity_appear_where_the_reference_puts_them(operation, value, kernels):
    for place, at in itertools.product(range(operation.count), (0, 2, -1)):
        lists = make(operation.count, shapes=((70,), (3,)))
        lists[place][0][at] = value
        want = truth(operation, lists)
        got = operation.run(stored(lists, "apart", operation))
        for one, other in zip(got, want, strict=True):
            for sign in (torch.isnan, torch.isposinf, torch.isneginf):
                assert torch.equal(sign(one), sign(other))


@pytest.mark.promise("M4")
@every_operation
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_element_is_written(operation, dtype, instruction_set):
    for storage in STORAGE:
        with nan_poison():
            lists = stored(make(operation.count, dtype), storage, operation)
            assert not whole(operation.run(lists)).isnan().any()
            layout = "transposed" if operation.fills else "strided"
            lists[0] = [arrange(x, layout) for x in lists[0]]
            assert not whole(operation.run(lists)).isnan().any()


@pytest.mark.promise("M4")
@every_operation
def test_nothing_is_written_beside_the_tensors(operation, instruction_set):
    for dtype in DTYPES:
        lists = stored(make(operation.count, dtype), "flat", operation)
        operation.run(lists)
        for tensors in lists:
            inside = torch.zeros_like(tensors.buffer, dtype=torch.bool)
            for x in tensors:
                inside.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(True)
            assert tensors.buffer[~inside].isnan().all() and (~inside).any()


@pytest.mark.promise("D1")
@every_operation
def test_threads_change_no_bit(operation, kernels):
    shapes = [(300_001,), *[(k % 97,) for k in range(600)], (70_000,)]
    lists = make(operation.count, shapes=shapes)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4, 1):
            torch.set_num_threads(count)
            for storage in ("apart", "read flat"):
                results.append(operation.run(stored(lists, storage, operation)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.promise("D1")
def test_where_memory_happens_to_lie_changes_no_sum(kernels):
    """Neighbours in memory must not be added up as one tensor."""
    shapes = [(k % 97,) for k in range(300)]
    xs, ys = make(2, torch.float64, shapes)
    beside = (
        torch.cat(xs).split([x.numel() for x in xs]),
        torch.cat(ys).split([y.numel() for y in ys]),
    )
    assert torch.equal(tensor_list.dot(*beside), tensor_list.dot(xs, ys))


@pytest.mark.promise("K21")
def test_two_threads_get_the_results_of_one(kernels):
    lists = make(2, shapes=[(k,) for k in range(200)])
    want, wrong = tensor_list.dot(*lists), []

    def work():
        for _ in range(50):
            if not torch.equal(tensor_list.dot(*lists), want):
                wrong.append(True)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_list_may_be_read_where_it_is_written(backend):
    for storage in ("apart", "flat"):
        ys, vs = stored(make(2), storage, OPERATIONS[0])
        want = [x.clone() for x in ys]
        tensor_list.axpy_(ys, 2.0, ys)
        assert all(torch.equal(y, 3 * x) for y, x in zip(ys, want, strict=True))
        tensor_list.perturb(ys, 1.0, vs, out=ys)
        assert all(torch.allclose(y, 3 * x + v) for y, x, v in zip(ys, want, vs, strict=True))
        tensor_list.difference(ys, ys, 0.5, out=vs)
        assert not any(v.any() for v in vs)


def test_a_list_may_be_read_in_another_layout_where_it_is_written(backend):
    x = torch.arange(9.0).view(3, 3)
    want = x + x.t()
    tensor_list.axpy_([x], 1.0, [x.t()])
    assert torch.equal(x, want)
    base = torch.arange(8.0)
    tensor_list.axpy_([base[::2], base[1::2]], 1.0, [base[::2], torch.ones(4)])
    assert base.tolist() == [0.0, 2.0, 4.0, 4.0, 8.0, 6.0, 12.0, 8.0]


def test_what_is_read_may_overlap(backend):
    base = torch.arange(8.0)
    got = tensor_list.dot([base[:7], base[:7]], [base[1:], base[:7]])
    assert float(got) == float(base[:7] @ base[1:] + base[:7] @ base[:7])


@pytest.mark.promise("K6")
def test_parameters_are_read_and_nothing_is_recorded(backend):
    ws, vs = make(2)
    leaves = [x.requires_grad_() for x in ws]
    eps = torch.tensor(0.5, requires_grad=True)
    made = [*tensor_list.perturb(leaves, eps, vs), *tensor_list.difference(leaves, vs, eps)]
    made += [tensor_list.dot(leaves, vs), tensor_list.norm(leaves)]
    tensor_list.axpy_(vs, eps, leaves)
    assert not any(x.requires_grad for x in [*made, *vs])


@pytest.mark.promise("K8")
@pytest.mark.parametrize("storage", ["apart", "flat"])
def test_a_saved_tensor_that_is_written_to_is_noticed(storage, backend):
    (xs,) = stored(make(1), storage, OPERATIONS[3])
    leaf = torch.ones(3, requires_grad=True)
    loss = (leaf * xs[0]).sum()
    tensor_list.scale_(xs, 2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_mode(backend):
    with torch.inference_mode():
        xs, ys = make(2)
        tensor_list.axpy_(xs, 1.0, ys)
        assert tensor_list.norm(xs).dtype == torch.float32


@pytest.mark.promise("K5")
@every_operation
def test_registration(operation):
    operators = torch.ops.pyfast_nas
    names = {
        "perturb": "perturb_into",
        "difference": "difference_into",
        "norm": "dot",
        "step": "dot",
    }
    operator = getattr(
        operators, f"tensor_list_{names.get(operation.name, operation.name)}"
    ).default
    others = {
        "dot": (0, 0.0),
        "norm": (1, 0.0),
        "step": (2, 0.1),
        "cg_step_": (torch.ones(4).double(),),
    }
    for storage in ("apart", "flat"):
        lists = stored(make(operation.count, shapes=((3,), (2, 2))), storage, operation)
        if operation.name in ("norm", "step"):
            lists = [*lists, []]
        layout = lists[0]._layout if storage == "flat" else None
        given = [[x.buffer] if isinstance(x, tensor_list.FlatList) else list(x) for x in lists]
        flats = 2**operation.count - 1 if storage == "flat" else 0
        rest = others.get(operation.name, (0.5, torch.tensor(0.5)))
        opcheck(operator, (*given, layout, flats, *rest))


@pytest.mark.promise("K17")
def test_compiled_whole(backend):
    def update(ps, us, hs, gamma):
        tensor_list.neumann_step_(ps, us, hs, gamma)
        return tensor_list.norm(ps)

    lists = make(3, shapes=((3,), (2, 5)))
    copies = [[x.clone() for x in tensors] for tensors in lists]
    with torch.no_grad():
        got = torch.compile(update, fullgraph=True, backend="aot_eager")(*copies, 0.5)
        want = update(*lists, 0.5)
    torch.testing.assert_close([got, *copies[0], *copies[1]], [want, *lists[0], *lists[1]])


def test_flat_storage_is_one_aligned_buffer():
    for dtype in DTYPES:
        xs = make(1, dtype)[0]
        flat_xs = tensor_list.flat_like(xs)
        assert [x.shape for x in flat_xs] == list(SHAPES)
        for x in flat_xs:
            assert x.untyped_storage().data_ptr() == flat_xs.buffer.untyped_storage().data_ptr()
            assert x.numel() == 0 or x.data_ptr() % 16 == 0
        assert not flat_xs.buffer.any() and flat_xs.buffer.dtype == dtype
        assert isinstance(flat_xs[1:], tuple) and type(copy.deepcopy(flat_xs)) is tuple


def test_a_tensor_that_left_its_buffer_is_found(kernels):
    xs = flat([torch.ones(3), torch.ones(2)])
    xs[-1].data = torch.full((2,), 5.0)
    assert float(tensor_list.dot(xs, xs)) == 3 + 50
    tensor_list.scale_(xs, 2.0)
    assert xs[-1].tolist() == [10.0, 10.0] and xs[0].tolist() == [2.0] * 3


def test_layouts_that_differ_are_no_one_buffer(backend):
    xs = flat([torch.ones(3), torch.ones(2, 2)])
    ys = flat([torch.ones(3), torch.ones(2, 2).t()])
    ys[1].copy_(torch.arange(4.0).view(2, 2))
    tensor_list.axpy_(xs, 1.0, ys)
    assert xs[1].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    turned = flat([torch.ones(3), torch.ones(4, 2)[:, :1].t()])
    tensor_list.axpy_(turned, 2.0, flat([torch.ones(3), torch.ones(1, 4)]))
    assert turned[1].tolist() == [[3.0] * 4]

"""Lists of tensors that do not fit are refused by class and words, and nothing is written."""

import numpy
import pytest
import torch

from pyfast_nas.ops import tensor_list
from tests.ops.list_cases import flat


def lists(count=2):
    return [[torch.ones(2, 3), torch.ones(4)] for _ in range(count)]


def replaced(index, value):
    tensors = lists(1)[0]
    tensors[index] = value
    return tensors


BASE = torch.ones(10)

# What takes the place of ys and of xs in axpy_(ys, 0.5, xs), and the class and words it meets.
BAD = {
    "no list": (
        torch.ones(2),
        lists(1)[0],
        TypeError,
        "ys must be a list or tuple of tensors, got",
    ),
    "none": (lists(1)[0], None, TypeError, "xs must be a list or tuple of tensors, got NoneType"),
    "empty": ([], [], ValueError, "ys must hold at least one tensor, got 0"),
    "lengths": (
        lists(1)[0],
        [torch.ones(2, 3)],
        ValueError,
        "xs must hold 2 tensors like ys, got 1",
    ),
    "shapes": (
        lists(1)[0],
        replaced(1, torch.ones(5)),
        ValueError,
        r"xs\[1\] must have shape \[4\] like ys\[1\], got \[5\]",
    ),
    "ranks": (lists(1)[0], replaced(0, torch.ones(3, 2)), ValueError, r"xs\[0\].*\[2, 3\]"),
    "dtypes": (
        lists(1)[0],
        replaced(1, torch.ones(4).double()),
        TypeError,
        r"xs\[1\] must have dtype torch.float32 like ys\[0\], got torch.float64",
    ),
    "dtypes of one list": (
        replaced(1, torch.ones(4).half()),
        lists(1)[0],
        TypeError,
        r"ys\[1\] must have dtype torch.float32 like ys\[0\], got torch.float16",
    ),
    "integers": (
        [torch.ones(2).long()],
        [torch.ones(2).long()],
        TypeError,
        r"ys\[0\] must have dtype float64, float32, bfloat16 or float16, got torch.int64",
    ),
    "array": (
        lists(1)[0],
        replaced(1, numpy.ones(4)),
        TypeError,
        r"xs\[1\] must be a tensor, got nd",
    ),
    "sparse": (
        lists(1)[0],
        replaced(0, torch.ones(2, 3).to_sparse()),
        NotImplementedError,
        r"xs\[0\] must be a dense strided tensor, got layout torch.sparse_coo",
    ),
    "meta": (
        [torch.ones(2, device="meta")],
        [torch.ones(2, device="meta")],
        NotImplementedError,
        r"ys\[0\] must be a dense strided tensor, got layout meta",
    ),
    "one on another device": (
        lists(1)[0],
        replaced(1, torch.ones(4, device="meta")),
        (NotImplementedError, RuntimeError),
        r"xs\[1\]",
    ),
    "repeated": (
        [BASE, BASE],
        [torch.ones(10), torch.ones(10)],
        ValueError,
        r"ys\[1\] must not share memory with ys\[0\]",
    ),
    "overlapping": (
        [BASE[:6], BASE[5:]],
        [torch.ones(6), torch.ones(5)],
        ValueError,
        "share memory",
    ),
    "a repeated view with gaps": ([BASE[::2], BASE[::2]], [torch.ones(5)] * 2, ValueError, "share"),
    "read elsewhere": ([BASE[:5]], [BASE[1:6]], ValueError, r"share memory"),
    "read at another place": (
        [BASE[:5], BASE[5:]],
        [BASE[5:], torch.ones(5)],
        ValueError,
        "share memory",
    ),
    "expanded": (
        [torch.ones(1).expand(4)],
        [torch.ones(4)],
        ValueError,
        r"ys\[0\] must not hold one element at two places",
    ),
}
SCALARS = {
    "text": ("1", TypeError, "a must be a number or a 0-dim tensor, got str"),
    "none": (None, TypeError, "a must be a number or a 0-dim tensor, got NoneType"),
    "complex": (1j, TypeError, "a must be a number or a 0-dim tensor, got complex"),
    "vector": (torch.ones(1), ValueError, r"a must be a number .*got a tensor of shape \[1\]"),
    "integer": (torch.tensor(1), TypeError, "a must be of a floating dtype, got torch.int64"),
    "elsewhere": (torch.ones((), device="meta"), RuntimeError, "a must be on cpu like the lists"),
}


@pytest.mark.parametrize("case", BAD)
def test_lists(case, backend):
    ys, xs, kind, words = BAD[case]
    before = [y.clone() for y in ys if isinstance(y, torch.Tensor) and not y.is_meta]
    with pytest.raises(kind, match=words) as caught:
        tensor_list.axpy_(ys, 0.5, xs)
    message = str(caught.value)
    assert message.startswith("axpy_: ") and len(message) < 400 and "0x" not in message
    after = [y for y in ys if isinstance(y, torch.Tensor) and not y.is_meta]
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("case", SCALARS)
def test_scalars(case, backend):
    scalar, kind, words = SCALARS[case]
    with pytest.raises(kind, match=f"axpy_: {words}"):
        tensor_list.axpy_(lists(1)[0], scalar, lists(1)[0])


def test_every_list_of_every_function_is_named(backend):
    good, bad = lists(1)[0], [torch.ones(2, 3), torch.ones(5)]
    state = tensor_list.cg_start(good)
    calls = {
        "scale_: xs": lambda: tensor_list.scale_([1], 2.0),
        "dot: ys": lambda: tensor_list.dot(good, bad),
        "norm: xs": lambda: tensor_list.norm([]),
        "central_difference_step: vs": lambda: tensor_list.central_difference_step(None),
        "perturb: vs": lambda: tensor_list.perturb(good, 1.0, bad),
        "perturb: ws": lambda: tensor_list.perturb(good, 1.0, good, out=bad),
        "difference: ys": lambda: tensor_list.difference(good, bad, 1.0),
        "difference: eps": lambda: tensor_list.difference(good, good, None),
        "neumann_step_: us": lambda: tensor_list.neumann_step_(good, bad, lists(1)[0], 1.0),
        "neumann_step_: gamma": lambda: tensor_list.neumann_step_(*lists(3), torch.ones(2)),
        "cg_step_: hs": lambda: tensor_list.cg_step_(*lists(3), bad, state),
        "cg_step_: state": lambda: tensor_list.cg_step_(*lists(4), torch.ones(4)),
        "cg_start: rs": lambda: tensor_list.cg_start([]),
        "flat_like: tensors": lambda: tensor_list.flat_like([]),
    }
    for words, call in calls.items():
        with pytest.raises((TypeError, ValueError), match=words):
            call()


def test_two_lists_that_are_written_must_be_two(backend):
    for ps in (lists(1)[0], flat(lists(1)[0])):
        with pytest.raises(ValueError, match=r"neumann_step_: us\[[01]\] must not share memory"):
            tensor_list.neumann_step_(ps, ps, lists(1)[0], 0.5)


def test_two_layouts_of_one_memory_are_no_two_lists(backend):
    x = torch.ones(3, 3)
    for us in (x.t(), x[:, :1].expand(3, 3).t(), x.as_strided((3, 3), (3, 1))):
        with pytest.raises(ValueError, match=r"neumann_step_: (us|ps)"):
            tensor_list.neumann_step_([x], [us], [torch.ones(3, 3)], 0.5)
    gaps = torch.ones(4, 6)
    with pytest.raises(ValueError, match="must not share memory"):
        tensor_list.axpy_([gaps[:, ::2]], 1.0, [gaps.view(-1)[:12].view(4, 3)])
    assert (x == 1).all() and (gaps == 1).all()


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan")])
def test_a_radius_must_be_positive(radius, backend):
    with pytest.raises(ValueError, match="radius must be greater than 0, got"):
        tensor_list.central_difference_step(lists(1)[0], radius)


def test_a_leaf_is_written_to_under_no_grad_only(backend):
    ys, xs = lists()
    ys[1].requires_grad_()
    words = r"axpy_: ys\[1\] must not require a gradient while gradients are recorded"
    with pytest.raises(RuntimeError, match=words):
        tensor_list.axpy_(ys, 1.0, xs)
    assert ys[0].tolist() == torch.ones(2, 3).tolist()
    with torch.no_grad():
        tensor_list.axpy_(ys, 1.0, xs)
    assert ys[1].tolist() == [2.0] * 4 and ys[1].requires_grad


def test_shapes_of_flat_storage_are_compared(backend):
    for xs in (lists(1)[0], flat(lists(1)[0])):
        with pytest.raises(ValueError, match=r"xs\[0\] must have shape \[3, 2\] like ys\[0\]"):
            tensor_list.axpy_(flat([torch.ones(3, 2), torch.ones(4)]), 1.0, xs)


def test_operators_called_directly_guard_memory(kernels):
    # Their Python validator is passed by, so C++ must not read beyond what is there.
    axpy, dot = torch.ops.pyfast_nas.tensor_list_axpy_, torch.ops.pyfast_nas.tensor_list_dot
    x, buffer = torch.ones(4), torch.ones(4)

    def layout(*numbers):
        return torch.tensor(numbers)

    dense = layout(0, 1, 4, 1)
    calls = {
        "xs must have the shapes": lambda: axpy([x], [torch.ones(3)], None, 0, 1.0, None),
        "xs must hold as many tensors": lambda: axpy([x], [buffer] * 2, None, 0, 1.0, None),
        "xs must be of one dtype": lambda: axpy([x], [x.double()], None, 0, 1.0, None),
        "a buffer needs a layout": lambda: axpy([x], [buffer], None, 1, 1.0, None),
        "ys is smaller than its layout": lambda: axpy(
            [x], [buffer], layout(1, 1, 4, 1), 1, 1.0, None
        ),
        "layout must be of dense": lambda: axpy([x], [buffer], layout(0, 1, 4, 2), 3, 1.0, None),
        "layout ends early": lambda: axpy([x], [buffer], layout(0, 3, 4, 1), 3, 1.0, None),
        "xs must be one buffer": lambda: axpy([x], [buffer] * 2, dense, 3, 1.0, None),
        "xs must be contiguous": lambda: axpy([x], [torch.ones(8)[::2]], dense, 3, 1.0, None),
        "must not share memory": lambda: axpy([x, x], [buffer] * 2, None, 0, 1.0, None),
        "must not hold one element": lambda: axpy([x[:1].expand(4)], [x], None, 0, 1.0, None),
        "a scalar must hold one": lambda: axpy([x], [buffer], None, 0, 1.0, torch.ones(2)),
        "scalar has an unexpected": lambda: axpy([x], [buffer], None, 0, 1.0, torch.tensor(1)),
        "finish must be between": lambda: dot([x], [buffer], None, 0, 3, 0.0),
        "state must hold four": lambda: torch.ops.pyfast_nas.tensor_list_cg_step_(
            *[[torch.ones(2)] for _ in range(4)], None, 0, torch.ones(3).double()
        ),
    }
    for words, call in calls.items():
        with pytest.raises(RuntimeError, match=words):
            call()
    assert x.tolist() == [1.0] * 4

"""mixed_sum refuses bad input with the same class and words on every backend and when traced."""

import warnings

import numpy
import pytest
import torch

from pyfast_nas import ops


def xs(count=3, shape=(2, 3), dtype=torch.float32):
    return [torch.ones(shape, dtype=dtype) for _ in range(count)]


def replaced(index, value):
    candidates = xs()
    candidates[index] = value
    return candidates


ONES = torch.ones(3)

# What is given, and the class and words it must meet.
BAD = {
    "empty": ([], torch.ones(0), ValueError, "xs must hold at least one candidate, got 0"),
    "shapes": (
        replaced(2, torch.ones(2, 4)),
        ONES,
        ValueError,
        r"xs\[2\] must have shape \[2, 3\] like xs\[0\], got \[2, 4\]",
    ),
    "ranks": (replaced(1, torch.ones(3)), ONES, ValueError, r"xs\[1\].*\[2, 3\].*got \[3\]"),
    "dtypes": (
        replaced(1, torch.ones(2, 3).double()),
        ONES,
        TypeError,
        r"xs\[1\] must have dtype torch.float32 like xs\[0\], got torch.float64",
    ),
    "count": (xs(), torch.ones(5), ValueError, "each of the 3 candidates, got 5"),
    "rank 0": (xs(1), torch.tensor(1.0), ValueError, r"must have shape \[1\].*got \[\]"),
    "rank 2": (xs(), torch.ones(3, 1), ValueError, r"must have shape \[3\].*got \[3, 1\]"),
    "integer weights": (
        xs(),
        torch.ones(3).int(),
        TypeError,
        "weights must have dtype float64, float32, bfloat16 or float16, got torch.int32",
    ),
    "bool weights": (xs(), torch.ones(3).bool(), TypeError, "weights.*got torch.bool"),
    "integer candidates": (xs(dtype=torch.int64), ONES, TypeError, r"xs\[0\].*got torch.int64"),
    "complex": (xs(dtype=torch.complex64), ONES, TypeError, r"xs\[0\].*got torch.complex64"),
    "float8": (xs(dtype=torch.float8_e4m3fn), ONES, TypeError, r"xs\[0\].*torch.float8_e4m3fn"),
    "half weights": (
        xs(),
        ONES.half(),
        TypeError,
        "weights must have dtype torch.float32 like.*got torch.float16",
    ),
}


def unusual(make):
    """Make a tensor of a kind that torch itself warns about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


# What fake tensors cannot be made of, or do not carry.
BAD_AND_REAL = {
    "quantised": (
        replaced(1, unusual(lambda: torch.quantize_per_tensor(xs(1)[0], 0.1, 0, torch.quint8))),
        ONES,
        TypeError,
        r"xs\[1\] must have dtype .*got torch.quint8",
    ),
    "sparse": (
        replaced(0, torch.ones(2, 3).to_sparse()),
        ONES,
        NotImplementedError,
        r"xs\[0\] must be a dense strided tensor, got layout torch.sparse_coo",
    ),
    "nested": (
        [unusual(lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))] * 3,
        ONES,
        NotImplementedError,
        r"xs\[0\].*got layout nested",
    ),
    "mkldnn": (
        replaced(1, torch.ones(2, 3).to_mkldnn()),
        ONES,
        NotImplementedError,
        r"xs\[1\].*got layout torch._mkldnn",
    ),
    "meta": (
        [x.to("meta") for x in xs()],
        ONES.to("meta"),
        NotImplementedError,
        r"xs\[0\].*got layout meta",
    ),
    "not a list": (torch.ones(3, 2), ONES, TypeError, "xs must be a list or tuple of tensors"),
    "none": (None, ONES, TypeError, "xs must be a list or tuple of tensors, got NoneType"),
    "text": ("abc", ONES, TypeError, "xs must be a list or tuple of tensors, got str"),
    "array": (
        replaced(2, numpy.ones((2, 3))),
        ONES,
        TypeError,
        r"xs\[2\] must be a tensor, got ndarray",
    ),
    "list of numbers": (xs(), [1.0, 1.0, 1.0], TypeError, "weights must be a tensor, got list"),
    "no weights": (xs(), None, TypeError, "weights must be a tensor, got NoneType"),
}


def refused(candidates, weights, kind, words, call=ops.mixed_sum) -> None:
    with pytest.raises(Exception, match=words) as caught:
        call(candidates, weights)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert message.startswith("mixed_sum: ") and len(message) < 400 and "0x" not in message


@pytest.mark.parametrize("case", [*BAD, *BAD_AND_REAL])
def test_real_tensors(case, backend):
    candidates, weights, kind, words = (BAD | BAD_AND_REAL)[case]
    before = torch.get_rng_state()
    copies = [x.clone() for x in candidates] if case in BAD else []
    refused(candidates, weights, kind, words)
    assert torch.equal(torch.get_rng_state(), before)
    for copy, candidate in zip(copies, candidates if copies else [], strict=True):
        assert torch.equal(copy.view(torch.uint8), candidate.view(torch.uint8))


@pytest.mark.parametrize(
    "case, call",
    # A list without tensors leads the dispatcher to no fake kernel.
    [(case, torch.ops.pyfast_nas.mixed_sum) for case in BAD if case != "empty"]
    + [(case, ops.mixed_sum) for case in BAD],
)
def test_fake_tensors(case, call, backend):
    candidates, weights, kind, words = BAD[case]
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in candidates]
        refused(fakes, mode.from_tensor(weights), kind, words, call)


def test_devices_must_agree():
    # The fake kernel sees a second device where there is none.
    with torch._subclasses.FakeTensorMode() as mode:
        here = [mode.from_tensor(x) for x in xs()]
        there = torch.empty(2, 3, device="cuda")
        words = r"xs\[1\] must be on cpu like xs\[0\], got cuda:0"
        refused([here[0], there, here[2]], mode.from_tensor(ONES), RuntimeError, words)
        words = "weights must be on cpu like xs.0., got cuda:0"
        refused(here, torch.empty(3, device="cuda"), RuntimeError, words)


def test_operators_called_directly_guard_memory(kernels):
    # Their Python validator is passed by, so C++ must not read beyond what is there.
    operator, backward = torch.ops.pyfast_nas.mixed_sum, torch.ops.pyfast_nas.mixed_sum_backward
    with pytest.raises(RuntimeError, match="mixed_sum: xs must be of one shape"):
        operator([torch.ones(2), torch.ones(3)], torch.ones(2))
    with pytest.raises(RuntimeError, match="mixed_sum: weights must hold one number"):
        operator([torch.ones(2)], torch.ones(2))
    with pytest.raises(RuntimeError, match="mixed_sum: xs has an unexpected dtype"):
        operator([torch.ones(2), torch.ones(2).double()], torch.ones(2))
    with pytest.raises(RuntimeError, match="mixed_sum_backward: wanted must index candidates"):
        backward(torch.ones(2), [torch.ones(2)], torch.ones(1), [1], True)
    with pytest.raises(RuntimeError, match="mixed_sum_backward: wanted must not repeat"):
        backward(torch.ones(2), [torch.ones(2)], torch.ones(1), [0, 0], True)
    with pytest.raises(RuntimeError, match="mixed_sum_backward: grad must have the shape of xs"):
        backward(torch.ones(3), [torch.ones(2)], torch.ones(1), [0], True)
    with pytest.raises(RuntimeError, match="mixed_sum_backward: grad has an unexpected dtype"):
        backward(torch.ones(2).double(), [torch.ones(2)], torch.ones(1), [0], True)

"""norm_mixed_sum refuses bad input with the same class and words on every backend."""

import pytest
import torch

from pyfast_nas import ops
from pyfast_nas.ops import Norm

ONES = torch.ones(3)
XS = [torch.ones(4, 3, 2) for _ in range(2)]
TWO = torch.ones(2)


def first(**changes):
    return [Norm(**changes), None]


# What is given, and the class and words it must meet.
BAD = {
    "empty": ([], torch.ones(0), [], ValueError, "xs must hold at least one candidate, got 0"),
    "shapes": (
        [XS[0], torch.ones(4, 3, 5)],
        TWO,
        [None, None],
        ValueError,
        r"xs\[1\] must have shape \[4, 3, 2\] like xs\[0\], got \[4, 3, 5\]",
    ),
    "weights": (XS, ONES, [None, None], ValueError, "each of the 2 candidates, got 3"),
    "dtypes": (XS, TWO.double(), [None, None], TypeError, "weights.*got torch.float64"),
    "not a tensor": (
        [XS[0], "x"],
        TWO,
        [None] * 2,
        TypeError,
        r"xs\[1\] must be a tensor, got str",
    ),
    "sparse": (
        [x.to_sparse() for x in XS],
        TWO,
        [None] * 2,
        NotImplementedError,
        r"xs\[0\].*sparse",
    ),
    "rank": ([ONES, ONES], TWO, [None, None], ValueError, r"xs\[0\].*\[N, C, ...\], got \[3\]"),
    "no norms": (XS, TWO, None, TypeError, "norms must be a list or tuple, got NoneType"),
    "few norms": (XS, TWO, [None], ValueError, "for each of the 2 candidates, got 1"),
    "module": (
        XS,
        TWO,
        [None, torch.nn.BatchNorm1d(3)],
        TypeError,
        r"norms\[1\] must be a Norm or None, got BatchNorm1d",
    ),
    "gamma alone": (XS, TWO, first(gamma=ONES), ValueError, r"norms\[0\] must have both of gamma"),
    "mean alone": (XS, TWO, first(mean=ONES), ValueError, "both of gamma and beta, and of mean"),
    "length": (
        XS,
        TWO,
        first(gamma=TWO, beta=ONES),
        ValueError,
        r"norms\[0\].gamma must have shape \[3\], got \[2\]",
    ),
    "dtype of a norm": (
        XS,
        TWO,
        first(mean=ONES, var=ONES.double()),
        TypeError,
        r"norms\[0\].var must have dtype torch.float32 like xs, .*got torch.float64",
    ),
    "number": (
        XS,
        TWO,
        first(gamma=1.0, beta=ONES),
        TypeError,
        r"gamma must be a tensor, got float",
    ),
    "epsilon": (XS, TWO, first(eps="1e-5"), TypeError, r"norms\[0\].eps must be a number, got str"),
    "one value": (
        [torch.ones(1, 3, 1)] * 2,
        TWO,
        first(),
        ValueError,
        r"Expected more than 1 value per channel when training, got input size torch.Size",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case, backend):
    xs, weights, norms, error, words = BAD[case]
    with pytest.raises(error, match=words) as caught:
        ops.norm_mixed_sum(xs, weights, norms)
    assert str(caught.value).startswith("norm_mixed_sum: ")


def test_other_devices_are_refused(backend):
    with pytest.raises(NotImplementedError, match=r"xs\[0\].*layout meta"):
        ops.norm_mixed_sum([x.to("meta") for x in XS], TWO, [None, None])
    with pytest.raises(RuntimeError, match=r"norms\[0\].gamma must be on cpu like xs, got meta"):
        ops.norm_mixed_sum(XS, TWO, first(gamma=ONES.to("meta"), beta=ONES))


def test_the_kernel_guards_its_memory(kernels):
    call = torch.ops.pyfast_nas.norm_mixed_sum
    bad = [
        (XS, TWO, [ONES], [], [2, 0], [1e-5]),
        (XS, TWO, [TWO, ONES], [], [2, 0], [1e-5]),
        (XS, TWO, [ONES] * 3, [], [2, 0], [1e-5]),
        (XS, TWO, [], [ONES], [5, 0], [1e-5]),
        (XS, TWO, [], [], [1, 0], []),
        (XS, TWO, [], [], [1], [1e-5]),
        (XS, ONES, [], [], [0, 0], []),
        ([XS[0], ONES], TWO, [], [], [0, 0], []),
    ]
    for arguments in bad:
        with pytest.raises(RuntimeError, match="norm_mixed_sum: "):
            call(*arguments)
    call = torch.ops.pyfast_nas.norm_mixed_sum_backward
    statistics = torch.zeros(1, 2, 3, dtype=torch.float64)
    plan = ([1, 0], [1e-5])
    for arguments in (
        (XS[0][:1], XS, TWO, [], statistics, *plan, [0], True, []),
        (XS[0], XS, TWO, [], statistics[:, :1], *plan, [0], True, []),
        (XS[0], XS, TWO, [], statistics, *plan, [2], True, []),
        (XS[0], XS, TWO, [], statistics, *plan, [0, 0], True, []),
        (XS[0], XS, TWO, [], statistics, *plan, [0], True, [0]),
    ):
        with pytest.raises(RuntimeError, match="norm_mixed_sum_backward: "):
            call(*arguments)

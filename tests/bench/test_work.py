"""Operations and bytes of fused nodes, against what a person counts."""

import pytest
import torch

from pyfast_nas import _ext
from pyfast_nas.bench.networks import DARTSCase, NASBench201Case
from pyfast_nas.bench.work import Work, backward_work, forward_work, nodes_of
from pyfast_nas.ops import Candidate, Norm, Stage


def stage(c_out, c_in, *, window=0, size=1, shifted=0, affine=False):
    norm = Norm(torch.ones(c_out), torch.ones(c_out)) if affine else Norm()
    return Stage(
        torch.ones(c_in, 1, window, window) if window else None,
        torch.ones(c_out - shifted, c_in, size, size),
        norm,
        shifted=torch.ones(shifted, c_in, 1, 1) if shifted else None,
    )


def conv(*stages, edge=0):
    return Candidate("conv", edge, stages)


# Inputs are [2, 3, 4, 5]: 40 pixels come out at stride 1, 2 * 2 * 3 = 12 at stride 2.
@pytest.mark.parametrize(
    ("candidate", "stride", "windows", "products"),
    [
        (Candidate("skip", 0), 1, 0, 0),
        (Candidate("max_pool", 0, norm=Norm()), 2, 0, 0),
        (conv(stage(7, 3)), 1, 0, 40 * 7 * 3),
        (conv(stage(7, 3)), 2, 0, 12 * 7 * 3),
        (conv(stage(7, 3, window=5)), 2, 12 * 3 * 25, 12 * 7 * 3),
        # The stride is that of the first window: the second stage is as large as the outcome.
        (
            conv(stage(7, 3, window=3), stage(7, 7, window=3)),
            2,
            12 * (3 * 9 + 7 * 9),
            12 * (7 * 3 + 7 * 7),
        ),
        # Halves of a factorised reduction, and a full convolution.
        (conv(stage(7, 3, shifted=3)), 2, 0, 12 * 7 * 3),
        (conv(stage(7, 3, size=3)), 1, 0, 40 * 7 * 3 * 9),
        (conv(stage(7, 3, size=3), stage(7, 7, size=5)), 2, 0, 12 * 7 * (3 * 9 + 7 * 25)),
    ],
    ids=lambda value: value.kind if isinstance(value, Candidate) else str(value),
)
def test_operations_of_one_candidate(candidate, stride, windows, products):
    node = [torch.ones(2, 3, 4, 5)], [candidate], [stride]
    forward, backward = forward_work(*node), backward_work(*node)
    assert (forward.flops, forward.depthwise) == (2 * (windows + products), 2 * windows)
    # The same again, once for the gradient of the input, once for those of the weights.
    assert (backward.flops, backward.depthwise) == (3 * forward.flops, 3 * forward.depthwise)


def test_bytes_of_a_node():
    xs = [torch.ones(2, 3, 8, 8), torch.ones(2, 7, 4, 4)]
    candidates = [conv(stage(7, 3, window=3, affine=True)), Candidate("skip", 1)]
    inputs = 2 * 3 * 8 * 8 + 2 * 7 * 4 * 4
    parameters = 3 * 9 + 7 * 3 + 2 * 7
    outcome = 2 * 7 * 4 * 4
    for dtype, size in ((torch.float32, 4), (torch.float64, 8)):
        wide = [
            Candidate(*c[:2], tuple(_to(s, dtype) for s in c.stages), c.norm) for c in candidates
        ]
        node = [x.to(dtype) for x in xs], wide, [2, 1]
        assert forward_work(*node).bytes == size * (inputs + parameters + outcome)
        # Gradients of inputs and parameters are written, that of the outcome is read.
        assert backward_work(*node).bytes == size * (2 * (inputs + parameters) + outcome)


def _to(one: Stage, dtype: torch.dtype) -> Stage:
    norm = Norm(one.norm.gamma.to(dtype), one.norm.beta.to(dtype))
    return one._replace(taps=one.taps.to(dtype), matrix=one.matrix.to(dtype), norm=norm)


def test_only_shapes_are_looked_at():
    one = stage(7, 3, window=3)
    meta = one._replace(taps=one.taps.to("meta"), matrix=one.matrix.to("meta"))
    x = torch.ones(2, 3, 4, 4)
    real = forward_work([x], [conv(one)], [1])
    assert forward_work([x.to("meta")], [conv(meta)], [1]) == real


@pytest.fixture
def kernels():
    if "compiled" not in _ext.kernels_in_use("cpu").values():
        pytest.skip("no compiled kernels for the CPU in this installation")


def test_nodes_of_a_darts_supernet(kernels):
    case = DARTSCase(batch=2, channels=2, cells=1, size=8)
    forward, backward = nodes_of(case.workload("fused").run)
    # A single cell is a reduction, of twice the width: 4 channels on 4 x 4 pixels. Both alignments
    # make them of the 6 of the stem, on 8 x 8.
    pixels, width = 2 * 4 * 4, 4
    align = 4 * pixels * (6 * width)
    # On each edge two windows and two products of a separable convolution, 3 x 3 and 5 x 5, and one
    # of each of a dilated one.
    windows = pixels * 14 * width * (2 * 9 + 2 * 25 + 9 + 25)
    products = pixels * 14 * width**2 * (2 + 2 + 1 + 1)
    # Two edges into each of four nodes halve the image: they skip by a factorised reduction.
    skips = pixels * 8 * width**2
    assert forward.flops == 2 * (2 * align + windows + products + skips)
    assert forward.depthwise == 2 * windows
    assert backward.flops == 3 * forward.flops


def test_nodes_of_a_model_of_others(kernels):
    case = NASBench201Case(batch=2, channels=2, blocks=1, size=8)
    forward, _ = nodes_of(case.workload("accelerate").run)
    # Three cells of six edges, each with a 1 x 1 and a 3 x 3 convolution of its width.
    cells = sum(6 * 10 * width**2 * 2 * (8 * 2 // width) ** 2 for width in (2, 4, 8))
    assert forward == Work(2 * cells, 0, forward.bytes)


def test_without_kernels_there_are_no_nodes():
    case = DARTSCase(batch=2, channels=2, cells=1, size=8)
    assert nodes_of(case.workload("reference").run) == (Work(), Work())

"""Repeated runs, fresh memory, streams, waits, CUDA graphs: what a caller may build upon."""

import itertools

import pytest
import torch

from pyfast_nas import ops
from pyfast_nas.bench.memory import peak_bytes
from pyfast_nas.testing import nan_poison
from tests.gpu.devices import GPU, on_each_device, over_grid
from tests.gpu.graphs import captured
from tests.gpu.problems import LARGE
from tests.ops.tf32_cases import tf32

DTYPES = (torch.float32, torch.float64)
NODES = [problem for problem in LARGE if problem.name.startswith("fused_node")]
CASES = [
    *itertools.product(LARGE, DTYPES),
    *itertools.product(NODES, (torch.bfloat16, torch.float16)),
]
REPEATS = {"cpu": 3, "cuda": 50}


def name(case) -> str:
    problem, dtype = case
    return f"{problem}-{str(dtype).removeprefix('torch.')}"


def same_bits(got, want) -> bool:
    return all(map(torch.equal, got, want)) and len(got) == len(want)


@pytest.mark.promise("D2")
@pytest.mark.promise("D3")
@over_grid("case", CASES, 1, name)
def test_the_same_bits_in_repeated_runs(device, case):
    problem, dtype = case
    tensors = problem.inputs(device, dtype)
    want = problem.run(tensors)
    assert all(same_bits(problem.run(tensors), want) for _ in range(REPEATS[device]))


@pytest.mark.promise("D2")
@pytest.mark.promise("D3")
@over_grid("problem", NODES, 1)
def test_the_same_bits_on_tensor_cores(device, problem):
    with tf32():
        tensors = problem.inputs(device)
        want = problem.run(tensors)
        assert all(same_bits(problem.run(tensors), want) for _ in range(REPEATS[device]))


@pytest.mark.promise("M4")
@over_grid("case", CASES, 1, name)
def test_nothing_depends_on_what_memory_held(device, case):
    problem, dtype = case
    tensors = problem.inputs(device, dtype)
    want = problem.run(tensors)
    with nan_poison():
        assert same_bits(problem.run(tensors), want)


@pytest.mark.promise("K8")
@over_grid("problem", LARGE, 1)
def test_inputs_stay_as_they_are(device, problem):
    tensors = problem.inputs(device)
    before = [t.detach().clone() for t in tensors]
    problem.run(tensors)
    assert same_bits([t.detach() for t in tensors], before)


@pytest.mark.promise("K23")
@on_each_device
def test_a_sum_allocates_its_result_alone(device, kernels):
    xs = [torch.randn(1 << 18, device=device) for _ in range(8)]
    weights = torch.randn(8, device=device)
    ops.mixed_sum(xs, weights)
    assert peak_bytes(lambda: ops.mixed_sum(xs, weights), device) <= 1.1 * xs[0].nbytes


@over_grid("problem", LARGE, 1)
def test_operators_never_wait(device, problem, never_waits):
    tensors = problem.inputs(device)
    problem.run(tensors)  # the first pass may load kernels
    with never_waits():
        problem.run(tensors)


@pytest.mark.promise("K20")
@over_grid("problem", LARGE, 1)
def test_operators_run_on_the_current_stream(device, problem):
    """A kernel on the default stream would read what another stream is still making."""
    if device == "cpu":
        pytest.skip("the CPU has no streams")
    tensors = problem.inputs(device)
    want = problem.run(tensors)
    busy = torch.randn(4096, 4096, device=device)
    spoiled = [t.detach().clone().fill_(1) for t in tensors]
    stream = torch.cuda.Stream()
    for _ in range(20):
        late = [t.clone().requires_grad_(t.is_floating_point()) for t in spoiled]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            busy @ busy
            with torch.no_grad():
                for here, there in zip(late, tensors, strict=True):
                    here.copy_(there)
            got = problem.run(late)
        torch.cuda.current_stream().wait_stream(stream)
        assert same_bits(got, want)


@pytest.mark.promise("K19")
@over_grid("problem", LARGE, 1)
def test_graphs_replay_forward_and_backward(device, problem):
    static = problem.inputs(device)
    graph, results = captured(lambda: problem.run(static), device)
    for seed in range(1, 21):
        fresh = problem.inputs(device, seed=seed)
        with torch.no_grad():
            for here, there in zip(static, fresh, strict=True):
                here.copy_(there)
        graph.replay()
        assert same_bits(results, problem.run(fresh))


@pytest.mark.promise("K12")
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_more_than_two_to_the_31_elements(device):
    size = 2**31 + 513
    if torch.cuda.mem_get_info()[0] < 8 * 2 * size:
        pytest.skip("less memory than eight tensors of 2^31 half-precision numbers is free")
    xs = [torch.ones(size, dtype=torch.bfloat16, device=device) for _ in range(2)]
    places = [0, 1, 2**31 - 1, 2**31, 2**31 + 1, size - 1]
    xs[1][places] = torch.arange(2.0, 8.0, device=device, dtype=torch.bfloat16)
    weights = torch.tensor([1.0, 0.5], device=device, dtype=torch.bfloat16, requires_grad=True)
    xs[1].requires_grad_()
    y = ops.mixed_sum(xs, weights)
    assert y[places].tolist() == [1 + 0.5 * value for value in range(2, 8)]
    middle = [2, 2**30, 2**31 - 2, 2**31 + 2, size - 2]
    assert y[middle].tolist() == [1.5] * len(middle)
    gradient = torch.zeros_like(y)
    gradient[places] = 1
    of_weights, of_x = torch.autograd.grad(y, [weights, xs[1]], gradient)
    assert of_weights.tolist() == [6.0, float(sum(range(2, 8)))]
    assert of_x[places].tolist() == [0.5] * 6 and of_x[middle].tolist() == [0.0] * len(middle)

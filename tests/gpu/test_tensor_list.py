"""Lists of tensors on each device: values, repeated runs, waits, streams, CUDA graphs."""

import itertools

import pytest
import torch

from pyfast_nas.ops import tensor_list
from pyfast_nas.testing import DTYPES, nan_poison
from tests.gpu.devices import on_each_device, over_grid
from tests.gpu.graphs import captured
from tests.ops.list_cases import (
    OPERATIONS,
    STORAGE,
    check_against_float64,
    flat,
    make,
    stored,
)

GRID = list(itertools.product(OPERATIONS, DTYPES, STORAGE))
# More tensors than the parameter block of a launch takes, and more tiles than one.
MANY = [(k % 97,) for k in range(400)] + [(70_001,)]
REPEATS = {"cpu": 3, "cuda": 50}


def name(case) -> str:
    return "-".join(str(part).removeprefix("torch.").replace(" ", "_") for part in case)


def on(device: str, lists) -> list[list[torch.Tensor]]:
    return [[x.to(device) for x in tensors] for tensors in lists]


@pytest.mark.promise("K1")
@over_grid("case", GRID, 7, name)
def test_values(device, case):
    operation, dtype, storage = case
    scalar = torch.tensor(0.37, dtype=torch.float64, device=device)
    for factor in (0.37, scalar, scalar.float()):
        check_against_float64(operation, dtype, storage, device, factor)
    check_against_float64(operation, dtype, storage, device, shapes=MANY)


@pytest.mark.promise("D2")
@pytest.mark.promise("M4")
@over_grid("operation", OPERATIONS, 1)
def test_the_same_bits_in_repeated_runs(device, operation):
    lists = on(device, make(operation.count, shapes=MANY))
    for storage in ("apart", "flat"):
        want = operation.run(stored(lists, storage, operation))
        for _ in range(REPEATS[device]):
            with nan_poison():
                got = operation.run(stored(lists, storage, operation))
            assert all(map(torch.equal, got, want))


@over_grid("operation", OPERATIONS, 1)
def test_operators_never_wait(device, operation, never_waits):
    scalar = torch.tensor(0.37, device=device)
    for storage in ("apart", "read flat", "flat"):
        lists = stored(on(device, make(operation.count, shapes=MANY)), storage, operation)
        operation.run(lists, scalar)  # the first pass may load kernels
        with never_waits():
            operation.run(lists, scalar)


@pytest.mark.promise("K20")
@on_each_device
def test_operators_run_on_the_current_stream(device):
    if device == "cpu":
        pytest.skip("the CPU has no streams")
    busy = torch.randn(4096, 4096, device=device)
    for operation in OPERATIONS:
        lists = on(device, make(operation.count))
        want = operation.run(stored(lists, "apart", operation))
        late = [[torch.ones_like(x) for x in tensors] for tensors in lists]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            busy @ busy
            for tensors, others in zip(late, lists, strict=True):
                torch._foreach_copy_(tensors, others)
            got = operation.run(late)
        torch.cuda.current_stream().wait_stream(stream)
        assert all(map(torch.equal, got, want))


@pytest.mark.promise("K19")
@pytest.mark.parametrize("storage", ["apart", "flat"])
@on_each_device
def test_a_recorded_neumann_step_replays(device, storage):
    """The tables of a launch, and scalars that the device reads, belong to the recording."""
    vectors = [flat(x) if storage == "flat" else x for x in on(device, make(3, shapes=MANY))]
    gamma = torch.tensor(0.5, device=device)

    def call():
        with torch.no_grad():
            tensor_list.neumann_step_(*vectors, gamma)
            return [tensor_list.norm(vectors[0]), tensor_list.central_difference_step(vectors[1])]

    graph, results = captured(call, device)
    for seed, number in enumerate((0.25, -1.0), start=1):
        fresh = on(device, make(3, shapes=MANY, seed=seed))
        for vector, values in zip(vectors, fresh, strict=True):
            torch._foreach_copy_(list(vector), values)
        gamma.fill_(number)
        graph.replay()
        tensor_list.neumann_step_(*fresh, number)
        for vector, values in zip(vectors[:2], fresh, strict=False):
            assert all(map(torch.equal, vector, values))
        want = tensor_list.norm(fresh[0])
        assert torch.allclose(results[0], want)

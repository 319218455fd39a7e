"""The devices that a test runs on, and which part of a grid on each."""

from collections.abc import Sequence

import pytest
import torch

GPU = (
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
)
REDUCED = pytest.mark.reduced

# For tests without a grid: on the CPU it is a rehearsal of the test itself.
on_each_device = pytest.mark.parametrize(
    "device", [pytest.param("cpu"), pytest.param("cuda", marks=GPU)]
)
on_each_device_reduced = pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", marks=REDUCED), pytest.param("cuda", marks=(*GPU, REDUCED))],
)


def over_grid(name: str, cases: Sequence, every: int, ids=str) -> pytest.MarkDecorator:
    """Run all cases on the GPU and one of ``every`` on the CPU; those are marked ``reduced``."""
    params = []
    for place, case in enumerate(cases):
        reduced = (REDUCED,) if place % every == 0 else ()
        if reduced:
            params.append(pytest.param("cpu", case, marks=reduced, id=f"cpu-{ids(case)}"))
        params.append(pytest.param("cuda", case, marks=(*GPU, *reduced), id=f"cuda-{ids(case)}"))
    return pytest.mark.parametrize(("device", name), params)

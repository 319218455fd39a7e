"""The same search with kernels and without: alphas, weights and running statistics agree."""

import statistics
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from pyfast_nas import _ext, algorithms, spaces
from pyfast_nas.algorithms.gradient_search import GradientSearch
from pyfast_nas.engine import search
from pyfast_nas.testing import TOLERANCE, relative_error

# Both kinds of cells, one of them behind a reduction, and running statistics that move.
SPACE = spaces.DARTS(channels=4, cells=3, nodes=2, track_running_stats=True)
# Past the warm-ups of MSG-DAS, so that the first step moves everything.
ALGORITHMS = {
    "darts": lambda: algorithms.DARTS(alpha_lr=0.05),
    "gdas": lambda: algorithms.GDAS(alpha_lr=0.05, variant="A"),
    "msg-das": lambda: algorithms.MSGDAS(alpha_lr=0.05, alpha_warmup=0.0, kd_warmup=0.0),
    "snas": lambda: algorithms.SNAS(alpha_lr=0.05),
    "proxylessnas": lambda: algorithms.ProxylessNAS(
        alpha_lr=0.05, alpha_warmup=0.0, alpha_interval=1
    ),
}


@pytest.fixture(autouse=True)
def kernels() -> None:
    if "compiled" not in _ext.kernels_in_use("cpu").values():
        pytest.skip("no compiled kernels for the CPU in this installation")


@pytest.fixture
def dtype(request) -> Iterator[torch.dtype]:
    """The type that the whole search computes in."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def searched(mode: str, make: Callable[[], GradientSearch], steps: int, seed: int):
    """Return the algorithm after an epoch of so many steps, and the result."""
    images = torch.rand(20 * steps, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(20 * steps) % 3
    data = ((images, labels), (images[:4], labels[:4]))
    algorithm = make()
    options = {"epochs": 1, "batch_size": 10, "compare": 0, "device": "cpu", "seed": seed}
    with _ext.use(mode):
        result = search(SPACE, data, algorithm=algorithm, **options)
    assert algorithm.alpha_steps == steps
    return algorithm, result


def differences(make: Callable[[], GradientSearch], steps: int, seed: int) -> dict[str, float]:
    """Relative errors of a search with kernels, against the same without."""
    (compiled, found), (reference, wanted) = (
        searched(mode, make, steps, seed) for mode in ("require", "reference")
    )
    assert found.genotype == wanted.genotype
    got, want = compiled.supernet.state_dict(), reference.supernet.state_dict()
    assert got.keys() == want.keys()
    # Equal to the bit would be one route compared with itself.
    assert any(not torch.equal(got[key], want[key]) for key in want)
    errors = {key: error(key, got, want) for key in want}
    # Adam's first step is of one length whatever the gradient: that is compared beside the alphas.
    states = (algorithm.alpha_optimizer.state.values() for algorithm in (compiled, reference))
    for number, (ours, theirs) in enumerate(zip(*states, strict=True)):
        errors[f"gradient {number}"] = relative_error(ours["exp_avg"], theirs["exp_avg"])
    loss, plain_loss = (result.history[-1]["train/loss"] for result in (found, wanted))
    return errors | {"loss": abs(loss - plain_loss) / plain_loss}


def error(key: str, got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """Relative error of one entry; that of a mean in standard deviations, as a mean may be zero."""
    if key.endswith("running_mean"):
        deviation = want[key.removesuffix("mean") + "var"].sqrt()
        return float(((got[key] - want[key]).abs() / deviation).max())
    return relative_error(got[key], want[key])


@pytest.mark.promise("D6")
@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize(
    ("dtype", "steps", "seeds"),
    [
        (torch.float64, 3, 1),
        # One step, since later ones start from weights that differ. Even so about one search in
        # thirty has a value so close to the step of a ReLU that the routes fall on either side of
        # it, which shows in the weights below: of three searches the median counts.
        (torch.float32, 1, 3),
    ],
    ids=["float64", "float32"],
    indirect=["dtype"],
)
def test_a_search_is_the_same_on_both_routes(
    name: str, dtype: torch.dtype, steps: int, seeds: int
) -> None:
    found = [differences(ALGORITHMS[name], steps, seed) for seed in range(seeds)]
    medians = {key: statistics.median(errors[key] for errors in found) for key in found[0]}
    assert sum(key.endswith("running_var") for key in medians) > 50
    assert {key: value for key, value in medians.items() if not value < TOLERANCE[dtype]} == {}

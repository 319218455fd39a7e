"""The sampler's values: golden picks and weights, ties, masks, layouts, dtypes, repeatability."""

import pytest
import torch

from pyfast_nas import _ext, ops

GOLDEN_LOGITS = [
    [0.0] * 8,
    [1, 0.5, 0.25, 0, -0.25, -0.5, -0.75, -1],
    [0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8],
    [2.0, 0, 0, 0, 0, 0, 0, 0],
]
GOLDEN_PICKS = [[4, 3, 5, 6], [3, 5, 0, 2], [3, 1, 5, 0], [6, 5, 2, 1]]

# Golden vector of the two relaxations: logits, noise, gate gradients at tau 0.5.
LOGITS = [[1, 0.5, 0, -0.5, -1]]
NOISE = [[0.2, -0.1, 0.9, 0.4, 1.3]]
GATE_GRADIENTS = [[0.7 / 3, -0.3 / 3, 0.5 / 3]]
RELAXATIONS = {
    "shared": (
        [[0.502441711, 0.275745857, 0.101441232]],
        [[0.127383693, 0.012192827, -0.113920919, -0.007953891, -0.017701710]],
    ),
    "conditional": (
        [[0.502441711, 0.554198098, 0.457328884]],
        [[0.116663884, 0.081538952, -0.114067416, -0.026084127, -0.058051293]],
    ),
}


@pytest.fixture(params=["reference", "auto"])
def backend(request):
    """Run a test on the reference and on whatever serves by default."""
    with _ext.use(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_golden_picks(backend, dtype):
    logits = torch.tensor(GOLDEN_LOGITS, dtype=dtype)
    seed = torch.tensor([2024, 3])
    weights, indices = ops.gumbel_topk(logits, 4, tau=1.0, seed=seed)
    assert indices.tolist() == GOLDEN_PICKS
    assert weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_golden_relaxations(backend, relaxation, dtype, atol):
    want_weights, want_grad = RELAXATIONS[relaxation]
    logits = torch.tensor(LOGITS, dtype=dtype, requires_grad=True)
    noise = torch.tensor(NOISE, dtype=dtype)
    weights, indices = ops.gumbel_topk(
        logits, 3, tau=0.5, seed=torch.tensor([0, 0]), relaxation=relaxation, noise=noise
    )
    assert indices.tolist() == [[0, 2, 1]]
    torch.testing.assert_close(
        weights.detach(), torch.tensor(want_weights, dtype=dtype), rtol=0, atol=atol
    )
    weights.backward(torch.tensor(GATE_GRADIENTS, dtype=dtype))
    torch.testing.assert_close(logits.grad, torch.tensor(want_grad, dtype=dtype), rtol=0, atol=atol)

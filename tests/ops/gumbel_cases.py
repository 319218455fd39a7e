"""Shapes of gumbel_topk, and the comparison of a sample with the reference's."""

import torch

from pyfast_nas import ops
from pyfast_nas.ops import reference, reference_subset

SEED = torch.tensor([2024, 3])
# Keys closer than this may change places between two ways of rounding a logarithm.
GAP = 1e-5
# Relative to 1, the largest weight: a few roundings of exponentials and their sum in float32.
WEIGHT_ATOL = {torch.float32: 2e-6, torch.float64: 1e-14}


def rows_with_clear_ranks(logits, k, seed=SEED):
    """Rows of which the first k + 1 keys, in float64, differ by more than GAP."""
    u = reference.philox_uniform(seed, 0, *logits.shape, 0).double()
    keys = logits.double() + reference.gumbel_from_uniform(u)
    top = keys.topk(min(k + 1, keys.shape[1])).values
    return (top[:, :-1] - top[:, 1:] > GAP).all(1)


def assert_samples_agree(logits, k, *, tau=0.7, relaxation="shared", seed=SEED, device="cpu"):
    """Compare the kernel on ``device`` with the reference on the CPU, in float64, same draw."""
    found = ops.gumbel_topk(
        logits.to(device), k, tau=tau, seed=seed.to(device), relaxation=relaxation
    )
    weights, indices = (t.cpu() for t in found)
    want_weights, want_indices, keys = reference.gumbel_topk(
        logits.double(), k, tau, seed, relaxation == "conditional", True
    )
    if relaxation == "subset":
        want_weights = reference_subset.subset_weights(keys, want_indices, tau)
    clear = rows_with_clear_ranks(logits, k, seed)
    assert torch.equal(indices[clear], want_indices[clear])
    error = (weights[clear].double() - want_weights[clear]).abs()
    assert error.numel() == 0 or float(error.max()) <= WEIGHT_ATOL[weights.dtype]
    return clear


SHAPES = [
    (rows, columns)
    for columns in (1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 33, 63, 64, 65, 127, 128, 129, 1000)
    for rows in (1, 15, 33)
]

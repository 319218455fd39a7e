"""Functional operators: what the compiled kernels compute, callable on plain tensors."""

from pyfast_nas.ops.gumbel_topk import draw_seed, gumbel_noise, gumbel_topk, philox_uniform
from pyfast_nas.ops.mixed_sum import mixed_sum

__all__ = ["draw_seed", "gumbel_noise", "gumbel_topk", "mixed_sum", "philox_uniform"]

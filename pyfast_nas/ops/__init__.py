"""Functional operators: what the compiled kernels compute, callable on plain tensors."""

from pyfast_nas.ops import tensor_list
from pyfast_nas.ops.candidates import Candidate, Norm, Stage
from pyfast_nas.ops.fused_cell import FusedCell, Node, fused_cell
from pyfast_nas.ops.fused_node import fused_node, serves_fused_node
from pyfast_nas.ops.gumbel_topk import (
    draw_seed,
    forget_refusals,
    gumbel_noise,
    gumbel_topk,
    philox_uniform,
    relaxed_k_hot,
)
from pyfast_nas.ops.mixed_sum import mixed_sum
from pyfast_nas.ops.norm_mixed_sum import norm_mixed_sum

__all__ = [
    "Candidate",
    "FusedCell",
    "Node",
    "Norm",
    "Stage",
    "draw_seed",
    "forget_refusals",
    "fused_cell",
    "fused_node",
    "gumbel_noise",
    "gumbel_topk",
    "mixed_sum",
    "norm_mixed_sum",
    "philox_uniform",
    "relaxed_k_hot",
    "serves_fused_node",
    "tensor_list",
]

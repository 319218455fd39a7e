"""Estimators of the gradient through trained weights, one file each, and what they share."""

from pyfast_nas.hypergradients.base import Gradients, Hypergradient, Info
from pyfast_nas.hypergradients.first_order import first_order
from pyfast_nas.hypergradients.inner_optimizer import InnerOptimizer
from pyfast_nas.hypergradients.problem import BilevelProblem
from pyfast_nas.hypergradients.products import HessianProducts, hvp_aa, hvp_aw, hvp_ww

__all__ = [
    "BilevelProblem",
    "Gradients",
    "HessianProducts",
    "Hypergradient",
    "Info",
    "InnerOptimizer",
    "first_order",
    "hvp_aa",
    "hvp_aw",
    "hvp_ww",
]

"""Estimators of the gradient through trained weights, one file each, and what they share."""

from pyfast_nas.hypergradients.base import Gradients, Hypergradient, Info
from pyfast_nas.hypergradients.conjugate_gradient import conjugate_gradient
from pyfast_nas.hypergradients.exact import exact
from pyfast_nas.hypergradients.finite_difference import finite_difference
from pyfast_nas.hypergradients.first_order import first_order
from pyfast_nas.hypergradients.functional import (
    ESTIMATORS,
    HypergradResult,
    hypergradient,
    module_hypergradient,
)
from pyfast_nas.hypergradients.identity import identity
from pyfast_nas.hypergradients.inner_optimizer import InnerOptimizer
from pyfast_nas.hypergradients.lanczos import Eigenvalues, lanczos
from pyfast_nas.hypergradients.neumann import neumann
from pyfast_nas.hypergradients.nystrom import nystrom
from pyfast_nas.hypergradients.problem import BilevelProblem
from pyfast_nas.hypergradients.products import HessianProducts, hvp_aa, hvp_aw, hvp_ww
from pyfast_nas.hypergradients.spectrum import largest_eigenvalue
from pyfast_nas.hypergradients.unrolled import unrolled

__all__ = [
    "ESTIMATORS",
    "BilevelProblem",
    "Eigenvalues",
    "Gradients",
    "HessianProducts",
    "HypergradResult",
    "Hypergradient",
    "Info",
    "InnerOptimizer",
    "conjugate_gradient",
    "exact",
    "finite_difference",
    "first_order",
    "hvp_aa",
    "hvp_aw",
    "hvp_ww",
    "hypergradient",
    "identity",
    "lanczos",
    "largest_eigenvalue",
    "module_hypergradient",
    "neumann",
    "nystrom",
    "unrolled",
]

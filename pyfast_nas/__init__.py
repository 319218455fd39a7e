"""Differentiable architecture search on native PyTorch kernels."""

from pyfast_nas._version import __version__

__all__ = ["__version__"]

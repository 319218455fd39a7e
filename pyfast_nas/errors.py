"""The error family: every error this package raises on purpose.

Each class is also the fitting built-in, so both ``except pyfast_nas.Error`` and
``except ValueError`` work. Kernel operators raise the plain built-ins instead.
"""

__all__ = [
    "BackendUnavailableError",
    "ConfigError",
    "DataError",
    "DivergenceError",
    "Error",
    "FallbackWarning",
    "GenotypeError",
    "MemoryBudgetError",
    "SearchSpaceError",
]


class Error(Exception):
    """Base class of every error raised on purpose."""


class ConfigError(Error, ValueError):
    """An option, a configuration key or an argument value is wrong."""


class SearchSpaceError(Error, ValueError):
    """The search space cannot exist."""


class GenotypeError(Error, ValueError):
    """A genotype cannot be read, or does not fit the space."""


class DataError(Error, ValueError):
    """A data file or data set is missing, broken or not what it claims to be."""


class DivergenceError(Error, ArithmeticError):
    """A loss, gradient, weight or architecture parameter became NaN or infinite."""


class MemoryBudgetError(Error, RuntimeError):
    """The memory budget cannot be met even at the smallest setting."""


class BackendUnavailableError(Error, ImportError):
    """Compiled kernels were required and cannot be used."""


class FallbackWarning(UserWarning):
    """The slower PyTorch reference serves where a compiled kernel could."""

"""Initial values from a generator of one's own, leaving torch's global one as it was."""

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["seeded"]


@contextlib.contextmanager
def seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Let everything inside draw from a seed taken from ``generator``; None changes nothing.

    Layers initialise themselves from torch's global CPU generator and accept no other.

    Args:
        generator: Advanced by one draw.

    Example:
        >>> with seeded(torch.Generator().manual_seed(1)):
        ...     first = torch.rand(())
        >>> with seeded(torch.Generator().manual_seed(1)):
        ...     print(bool(torch.rand(()) == first))
        True
    """
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield

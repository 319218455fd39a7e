"""Drawing the same random numbers a second time, as a pass did that nothing was kept of."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["random_states", "replayed"]


def random_states(device: torch.device) -> list[Tensor]:
    """Return the states of torch's default generators: the CPU's, and that of a GPU.

    Example:
        >>> before = random_states(torch.device("cpu"))
        >>> x = torch.rand(2)
        >>> torch.equal(before[0], random_states(torch.device("cpu"))[0])
        False
    """
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


@contextlib.contextmanager
def replayed(states: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Draw from these states on inside; after it the generators go on from where they were.

    Args:
        states: What `random_states` returned for the same device.
        device: The device.

    Example:
        >>> cpu = torch.device("cpu")
        >>> before, x = random_states(cpu), torch.rand(2)
        >>> with replayed(before, cpu):
        ...     y = torch.rand(2)
        >>> torch.equal(x, y)
        True
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.set_rng_state(states[0])
        if devices:
            torch.cuda.set_rng_state(states[1], device)
        yield

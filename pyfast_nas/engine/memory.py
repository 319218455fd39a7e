"""How much memory a run has used at most."""

import resource

import torch

__all__ = ["peak_bytes"]


def peak_bytes(device: torch.device) -> int:
    """Return peak memory in bytes: allocated on the GPU, or resident in the process.

    Example:
        >>> peak_bytes(torch.device("cpu")) > 10_000_000
        True
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB

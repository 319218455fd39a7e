"""What makes a host wait for a device, seen on the CPU: a stand-in for torch's own debug mode."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Values that Python asks for, and tensors made of values that Python has: a copy each way.
READS = (aten._local_scalar_dense, aten.nonzero, aten.is_nonzero, aten.equal)
WRITES = (aten.lift_fresh,)


class WouldWait(TorchDispatchMode):
    """Raises at an operator that, with its tensors on a GPU, would wait for it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (*READS, *WRITES):
            raise RuntimeError(f"called a synchronizing operation: {func}")
        return func(*args, **(kwargs or {}))

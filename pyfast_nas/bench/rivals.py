"""The ways in which a network is run: plain PyTorch in all its forms, and ours."""

import contextlib
import dataclasses

from torch import nn

import pyfast_nas
from pyfast_nas import _ext
from pyfast_nas.bench.plain_darts import PlainCell, PlainMixedOp
from pyfast_nas.bench.plain_nas_bench_201 import PlainStageCell, PlainStageEdge

__all__ = ["PROVIDERS", "Provider"]

UNITS = {
    "edge": (PlainMixedOp, PlainStageEdge),
    "cell": (PlainCell, PlainStageCell),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provider:
    """How a network is made and run.

    Attributes:
        ours: Whether it is the package's own module rather than the plain one.
        accelerated: Whether ``pyfast_nas.accelerate`` takes the plain model over.
        reference: Whether kernels are switched off.
        channels_last: Whether parameters and inputs lie channels-last.
        nchw: Whether a part of a network that is ours gets NCHW, which it has to convert; inside a
            network of ours it does not.
        compiles: What ``torch.compile`` is given at a time: ``"edge"``, ``"cell"``, ``"whole"``.
        checkpointed: Whether cells are computed again in backward.
        optional: Whether it only runs when it is asked for.
    """

    ours: bool = False
    accelerated: bool = False
    reference: bool = False
    channels_last: bool = False
    nchw: bool = False
    compiles: str = ""
    checkpointed: bool = False
    optional: bool = False

    @property
    def is_native(self) -> bool:
        """Whether our code runs it."""
        return self.ours or self.accelerated

    @property
    def is_rival(self) -> bool:
        """Whether it is timed for comparison; our code without kernels is."""
        return self.reference or not self.is_native

    def apply(self, module: nn.Module) -> None:
        """Turn a fresh module into what this provider runs; the parameters stay the same.

        Raises:
            NotImplementedError: If nothing in the module can be taken over.
        """
        # A model that stays plain must not be timed under our name.
        if self.accelerated and not pyfast_nas.accelerate(module).replaced:
            raise NotImplementedError("pyfast_nas.accelerate replaced nothing")
        if self.checkpointed:
            module.checkpointed = True
        if self.compiles == "whole":
            module.compile(dynamic=False)
        elif self.compiles:
            for part in module.modules():
                if isinstance(part, UNITS[self.compiles]):
                    part.compile(dynamic=False)

    def serving(self) -> contextlib.AbstractContextManager:
        """Serve operators as this provider says inside the block."""
        return _ext.use("reference") if self.reference else contextlib.nullcontext()


PROVIDERS = {
    "eager": Provider(),
    "channels-last": Provider(channels_last=True),
    "checkpoint": Provider(channels_last=True, checkpointed=True),
    "compile": Provider(compiles="whole", optional=True),
    "compile-channels-last": Provider(compiles="whole", channels_last=True, optional=True),
    "compile-edge": Provider(compiles="edge", optional=True),
    "compile-edge-channels-last": Provider(compiles="edge", channels_last=True, optional=True),
    "compile-cell": Provider(compiles="cell", optional=True),
    "compile-cell-channels-last": Provider(compiles="cell", channels_last=True, optional=True),
    "compile-whole": Provider(compiles="whole", optional=True),
    "compile-whole-channels-last": Provider(compiles="whole", channels_last=True, optional=True),
    "reference": Provider(ours=True, reference=True, optional=True),
    "fused": Provider(ours=True),
    "fused-nchw": Provider(ours=True, nchw=True),
    "accelerate": Provider(accelerated=True),
}

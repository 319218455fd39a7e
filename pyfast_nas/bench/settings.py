"""What a session runs: sizes, rivals, patience, and the cases that follow from them."""

import dataclasses
from collections.abc import Callable, Sequence

from pyfast_nas.bench.networks import DARTSCase, NASBench201Case, NetworkCase
from pyfast_nas.bench.parts import CellCase, EdgeCase, NodeCase
from pyfast_nas.bench.rivals import PROVIDERS

__all__ = ["WHAT", "Say", "Settings", "network_cases"]

WHAT = (
    "operators",
    "tensor-list",
    "edge",
    "cell",
    "supernet",
    "profile",
    "step",
    "paths",
    "product",
)
Say = Callable[[str], None]
STAGES = ((16, 32), (32, 16), (64, 8))  # width of the cells and side of the images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes, rivals and patience of a session.

    Attributes:
        device: Where everything runs: ``"cpu"`` or ``"cuda"``.
        batch_size: Images in a batch.
        channels: Channels of the first cells of the supernets.
        cells: Cells of the DARTS supernet.
        blocks: Cells a stage of the NAS-Bench-201 supernet.
        seconds: Time for each provider and mode.
        rounds: Rounds that are made even if they take longer.
        rivals: Providers of networks that are timed; ours are timed always.
        compile_seconds: After how long compiling one case is given up.
        resident: Whether to measure resident memory of supernets, each in a fresh process.
    """

    device: str = "cpu"
    batch_size: int = 16
    channels: int = 16
    cells: int = 8
    blocks: int = 5
    seconds: float = 1.0
    rounds: int = 7
    rivals: Sequence[str] = tuple(n for n, how in PROVIDERS.items() if not how.optional)
    compile_seconds: float = 600.0
    resident: bool = True

    def providers(self, case: NetworkCase) -> list[str]:
        """Return the providers that run a case, in the order of their list."""
        return [n for n in case.providers if not PROVIDERS[n].is_rival or n in self.rivals]


def network_cases(what: str, settings: Settings) -> list[NetworkCase]:
    """Return the cases of ``"edge"`` (nodes among them), ``"cell"`` or ``"supernet"``.

    Example:
        >>> [case.name for case in network_cases("supernet", Settings(batch_size=2))]
        ['DARTS, C = 16, 8 cells, batch 2', 'NAS-Bench-201, C = 16, N = 5, batch 2']
    """
    batch, channels = settings.batch_size, settings.channels
    if what == "edge":
        return [
            kind(batch=batch, channels=width, size=size, stride=stride)
            for kind in (EdgeCase, NodeCase)
            for width, size in STAGES
            for stride in (1, 2)
        ]
    if what == "cell":
        cells = [CellCase(batch=batch, channels=width, size=size) for width, size in STAGES]
        return [*cells, CellCase(batch=batch, channels=32, size=32, reduction=True)]
    return [
        DARTSCase(batch=batch, channels=channels, cells=settings.cells),
        NASBench201Case(batch=batch, channels=channels, blocks=settings.blocks),
    ]

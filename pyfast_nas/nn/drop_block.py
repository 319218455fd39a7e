"""DropBlock-Identity: skip connections that drop square regions while a search trains sub-graphs.

Masks are keyed by (seed, skip connection, sub-graph) and never by the order of calls.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyfast_nas import ops
from pyfast_nas.nn.primitives import SkipConnect

__all__ = ["DropBlocks", "drop_block", "drop_block_mask", "seed_probability"]

# Counter rows of one skip connection in stream 2, one per sub-graph.
_PATHS = 4096
_STREAM = 2


def seed_probability(rate: float, block: int, height: int, width: int) -> float:
    r"""Return the probability that a place starts a dropped block, so that ``rate`` is dropped.

    .. math:: \gamma = \frac{r}{b^2} \cdot \frac{H W}{(H - b + 1)(W - b + 1)}

    Args:
        rate: Share to drop, to first order: blocks that overlap drop less.
        block: Side of a block, at most ``height`` and ``width``.
        height: Rows of the image.
        width: Columns of the image.

    Example:
        >>> round(seed_probability(0.3, 3, 32, 32), 6)
        0.037926

    References:
        Ghiasi, Lin & Le, "DropBlock", NeurIPS 2018, eq. 1.
    """
    places = (height - block + 1) * (width - block + 1)
    return min(1.0, rate / block**2 * (height * width / places))


def drop_block_mask(seeds: Tensor, block: int) -> Tensor:
    """Return which places survive: every seed erases the block whose top left corner it is.

    Args:
        seeds: True where a block starts; only places where a whole block fits.
        block: Side of a block.

    Shape:
        ``[N, 1, H - block + 1, W - block + 1]`` -> bool ``[N, 1, H, W]``.

    Example:
        >>> seeds = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
        >>> seeds[0, 0, 1, 0] = True
        >>> drop_block_mask(seeds, 2)[0, 0].int()
        tensor([[1, 1, 1, 1],
                [0, 0, 1, 1],
                [0, 0, 1, 1],
                [1, 1, 1, 1]], dtype=torch.int32)
    """
    reach = block - 1
    padded = F.pad(seeds.float(), (reach, reach, reach, reach))
    return F.max_pool2d(padded, block, stride=1) == 0


def drop_block(x: Tensor, *, rate: float, block: int, seed: Tensor, row: int) -> Tensor:
    r"""Zero random square regions, the same for all channels, and rescale the rest.

    .. math:: y = x \odot m \cdot |m| / \sum m

    Args:
        x: Input.
        rate: Share to drop, at least 0 and less than 1.
        block: Odd side of a block; cut to the image, and to an odd size.
        seed: Seed and offset, int64 ``[2]``, on the device of ``x``.
        row: Counter row of stream 2: equal seed and row give equal masks.

    Shape:
        ``[N, C, H, W]`` -> ``[N, C, H, W]``.

    Example:
        >>> x = torch.ones(2, 3, 8, 8)
        >>> y = drop_block(x, rate=0.3, block=3, seed=torch.tensor([0, 0]), row=0)
        >>> round(y.mean().item(), 4), bool((y == 0).any())
        (1.0, True)

    References:
        Ghiasi, Lin & Le, "DropBlock", NeurIPS 2018, algorithm 1.
    """
    samples, _, height, width = x.shape
    block = min(block, height, width)
    block -= 1 - block % 2
    grid = samples, 1, height - block + 1, width - block + 1
    places = grid[0] * grid[2] * grid[3]
    uniform = ops.philox_uniform(seed, 1, places, stream=_STREAM, first_row=row).view(grid)
    kept = drop_block_mask(uniform < seed_probability(rate, block, height, width), block)
    # An empty mask gives zeros: its sum is only kept from dividing by zero.
    mask = kept.to(torch.promote_types(x.dtype, torch.float32))
    mask = mask * (mask.numel() / mask.sum().clamp(min=1))
    return x * mask.to(x.dtype)


class DropBlocks:
    """Gives every stride-1 skip connection of a model a DropBlock, and switches them together.

    Outside :meth:`active`, in evaluation mode and at rate 0 they are the identity.

    Args:
        model: Model whose :class:`~pyfast_nas.nn.primitives.SkipConnect` modules are equipped.

    Attributes:
        count: Skip connections found.

    Example:
        >>> skip, x = SkipConnect(), torch.ones(1, 2, 8, 8)
        >>> blocks = DropBlocks(skip)
        >>> with blocks.active(rate=0.5, block=3, seed=torch.tensor([0, 0]), path=0):
        ...     dropped = skip(x)
        >>> bool((dropped == 0).any()), skip(x) is x
        (True, True)
    """

    def __init__(self, model: nn.Module) -> None:
        self.rate = 0.0
        self.block = 1
        self.path = 0
        self.seed: Tensor | None = None
        skips = [module for module in model.modules() if isinstance(module, SkipConnect)]
        self.count = len(skips)
        for instance, skip in enumerate(skips):
            skip.drop_block = _DropBlockIdentity(self, instance)

    @contextlib.contextmanager
    def active(self, *, rate: float, block: int, seed: Tensor, path: int) -> Iterator[None]:
        """Drop blocks in the forward passes of the body.

        Args:
            rate: Share to drop.
            block: Odd side of a block.
            seed: Seed and offset of this step, int64 ``[2]``.
            path: Number of the sub-graph, less than 4096.
        """
        before = self.rate, self.block, self.seed, self.path
        self.rate, self.block, self.seed, self.path = rate, block, seed, path
        try:
            yield
        finally:
            self.rate, self.block, self.seed, self.path = before


class _DropBlockIdentity:
    """The DropBlock of one skip connection."""

    def __init__(self, blocks: DropBlocks, instance: int) -> None:
        self.blocks = blocks
        self.instance = instance

    @property
    def is_active(self) -> bool:
        """Whether a pass drops anything."""
        return self.blocks.seed is not None and self.blocks.rate != 0

    def __call__(self, x: Tensor) -> Tensor:
        if not self.is_active:
            return x
        blocks = self.blocks
        row = _PATHS * self.instance + blocks.path
        return drop_block(x, rate=blocks.rate, block=blocks.block, seed=blocks.seed, row=row)

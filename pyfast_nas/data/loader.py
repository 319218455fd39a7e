"""Batches from a data set that lies whole on the device: no workers, no copies from the host."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from pyfast_nas.data.augment import crop_padding, cutout, random_crop
from pyfast_nas.data.image_data import ImageData, shown
from pyfast_nas.errors import ConfigError, DataError
from pyfast_nas.typing import Batch

__all__ = ["BatchStream", "DeviceLoader", "Normalize", "split_indices"]


class Normalize:
    """Turn raw samples into ``(x / scale - mean) / std``, in the default floating-point type.

    Example:
        >>> from pyfast_nas.data import load_data
        >>> data = load_data("digits")
        >>> x = Normalize(data)(data.train_x)
        >>> abs(float(x.mean())) < 1e-4, abs(float(x.std()) - 1) < 1e-3
        (True, True)
    """

    def __init__(self, data: ImageData, device: torch.device | str = "cpu"):
        shape = (1, -1, *(1,) * (data.train_x.dim() - 2))
        self.dtype = torch.get_default_dtype()
        mean = torch.tensor(data.mean, dtype=torch.float64, device="cpu").view(shape)
        std = torch.tensor(data.std, dtype=torch.float64, device="cpu").view(shape)
        # One multiplication and one addition an element: x * factor + offset.
        self.factor = (1 / (data.scale * std)).to(device, self.dtype)
        self.offset = (-mean / std).to(device, self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the network input for raw samples ``[batch, channels, ...]``."""
        return torch.addcmul(self.offset, x.to(self.dtype), self.factor)


class BatchStream:
    """Endless augmented batches over part of a data set, each sample equally often.

    The samples are walked in a random order; where it ends, also within a batch, a new order
    begins. The place is kept from epoch to epoch, so no sample is used twice more than another.

    Args:
        samples: Raw samples, on the device.
        labels: Their classes, on the device.
        indices: Which samples this stream walks.
        batch_size: Samples a batch, at most ``len(indices)``.
        normalize: From raw samples to network input.
        seed: Seed of the order and of the augmentation.
        augment: Whether images are cropped at random places.
        flip: Whether they are mirrored, too.
        cutout_size: Side of the square that is blanked, in pixels; 0 for none.

    Example:
        >>> from pyfast_nas.data import load_data
        >>> data = load_data("digits")
        >>> stream = BatchStream(
        ...     data.train_x, data.train_y, torch.arange(100), 25, Normalize(data), seed=0
        ... )
        >>> x, labels = stream.next()
        >>> x.shape, len(stream)
        (torch.Size([25, 1, 8, 8]), 4)
    """

    def __init__(
        self,
        samples: Tensor,
        labels: Tensor,
        indices: Tensor,
        batch_size: int,
        normalize: Normalize,
        *,
        seed: int,
        augment: bool = False,
        flip: bool = False,
        cutout_size: int = 0,
    ):
        self._samples, self._labels = samples, labels
        self._indices = indices.to(samples.device)
        self.batch_size = batch_size
        self._normalize = normalize
        is_image = samples.dim() == 4
        self._padding = crop_padding(tuple(samples.shape[2:])) if augment and is_image else 0
        self._flip = augment and flip and is_image
        self._cutout = cutout_size if is_image else 0
        # The order is drawn on the CPU, so that every device walks the same one.
        self._order_draws = Generator("cpu").manual_seed(seed)
        self.draws = Generator(samples.device).manual_seed(seed)
        self._order = self._new_order()
        self._cursor = 0

    def __len__(self) -> int:
        """Whole batches in one walk over the samples."""
        return len(self._indices) // self.batch_size

    def next(self) -> Batch:
        """Return the next batch: normalised samples and int64 labels."""
        chosen = self._order[self._cursor : self._cursor + self.batch_size]
        self._cursor += len(chosen)
        missing = self.batch_size - len(chosen)
        if missing:
            self._order, self._cursor = self._new_order(), missing
            chosen = torch.cat([chosen, self._order[:missing]])
        picked = self._indices[chosen]
        x = self._samples[picked]
        if self._padding or self._flip:
            x = random_crop(x, self._padding, flip=self._flip, generator=self.draws)
        x = cutout(self._normalize(x), self._cutout, generator=self.draws)
        return x, self._labels[picked]

    def plain_batches(self, count: int, generator: Generator) -> list[Batch]:
        """Return whole batches of distinct samples as they are, not augmented; the place is kept.

        Args:
            count: Batches, at most ``len(self)``.
            generator: CPU generator that chooses the samples.
        """
        order = torch.randperm(len(self._indices), generator=generator, device="cpu")
        chosen = self._indices[order[: count * self.batch_size].to(self._indices.device)]
        return [
            (self._normalize(self._samples[part]), self._labels[part])
            for part in chosen.split(self.batch_size)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides the batches to come, as tensors and numbers."""
        return {
            "order": self._order.cpu().clone(),
            "cursor": self._cursor,
            "order_draws": self._order_draws.get_state(),
            "draws": self.draws.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the stream that gave ``state`` stood."""
        order, cursor = state["order"], state["cursor"]
        if order.shape != self._order.shape or not 0 <= cursor <= len(order):
            raise DataError(
                f"BatchStream.load_state_dict: order must have {len(self._order)} entries and the "
                f"cursor lie within, got {len(order)} and {cursor}"
            )
        self._order = order.to(self._samples.device, copy=True)
        self._cursor = cursor
        self._order_draws.set_state(state["order_draws"])
        self.draws.set_state(state["draws"])

    def _new_order(self) -> Tensor:
        order = torch.randperm(len(self._indices), generator=self._order_draws, device="cpu")
        return order.to(self._samples.device)


class DeviceLoader:
    """Paired training and validation batches for a search, from a data set kept on the device.

    The training samples are divided once, by the generator, into two parts that share nothing
    and hold every class in proportion; the test samples are never touched. Raw ``uint8`` images
    stay ``uint8`` on the device and become numbers batch by batch.

    Args:
        data: What to load from.
        batch_size: Samples in a training batch and in a validation batch.
        augment: Crop at random places, and mirror where that keeps the class.
        generator: CPU generator that seeds the split, the orders and the augmentation.
        device: Where samples live and batches appear.
        valid_fraction: Share of the training samples that validation takes, between 0 and 1.

    Raises:
        ConfigError: If a part is smaller than one batch.

    Example:
        >>> from pyfast_nas.data import load_data
        >>> loader = DeviceLoader(
        ...     load_data("digits"), 64, augment=True, generator=torch.Generator().manual_seed(0)
        ... )
        >>> len(loader), [x.shape[0] for x, _ in next(iter(loader))]
        (11, [64, 64])
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        *,
        augment: bool,
        generator: Generator,
        device: torch.device | str = "cpu",
        valid_fraction: float = 0.5,
    ):
        train, valid = split_indices(data.train_y, valid_fraction, generator)
        smaller = min(len(train), len(valid))
        if not 1 <= batch_size <= smaller:
            raise ConfigError(
                f"DeviceLoader: batch_size must be between 1 and {smaller}, the smaller part of "
                f"the training samples, got {shown(batch_size)}"
            )
        samples, labels = data.train_x.to(device), data.train_y.to(device)
        normalize = Normalize(data, device)
        seeds = torch.randint(2**62, (2,), generator=generator, device="cpu").tolist()
        self.train, self.valid = (
            BatchStream(
                samples,
                labels,
                part,
                batch_size,
                normalize,
                seed=seed,
                augment=augment,
                flip=data.flip,
            )
            for part, seed in zip((train, valid), seeds, strict=True)
        )
        self.train_samples, self.valid_samples = len(train), len(valid)
        content = torch.cat([train, valid]).numpy().tobytes()
        self.split = hashlib.sha256(data.fingerprint.encode() + content).hexdigest()

    def __len__(self) -> int:
        """Pairs of batches in an epoch: whole batches of the training part."""
        return len(self.train)

    def __iter__(self) -> Iterator[tuple[Batch, Batch]]:
        """Yield one epoch of pairs; both streams go on where the last epoch ended."""
        for _ in range(len(self)):
            yield self.train.next(), self.valid.next()

    def state_dict(self) -> dict[str, Any]:
        """Return the place in both streams and the identity of the split."""
        return {
            "split": self.split,
            "train": self.train.state_dict(),
            "valid": self.valid.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another loader of the same data and split stood.

        Raises:
            DataError: If the state belongs to other data or to another split.
        """
        if state["split"] != self.split:
            raise DataError(
                "DeviceLoader.load_state_dict: state must come from the same data and split"
            )
        self.train.load_state_dict(state["train"])
        self.valid.load_state_dict(state["valid"])


def split_indices(
    labels: Tensor, valid_fraction: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Divide samples into a training and a validation part, class by class in proportion.

    A random order is sorted by class, and validation takes its share evenly along it; with one
    half, each class of two samples or more is in both parts.

    Args:
        labels: Classes, int64.
        valid_fraction: Share of the validation part, above 0 and below 1.
        generator: CPU generator of the order.

    Returns:
        Indices of the training and of the validation part.

    Shape:
        labels ``[samples]`` -> int64 ``[train]`` and ``[valid]``, which together are all samples.

    Raises:
        ConfigError: If ``valid_fraction`` is out of range.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
        >>> train, valid = split_indices(labels, 0.5, torch.Generator().manual_seed(0))
        >>> labels[train].tolist(), labels[valid].tolist()
        ([0, 0, 1], [0, 0, 1])
    """
    if not 0 < valid_fraction < 1:
        raise ConfigError(
            f"split_indices: valid_fraction must be above 0 and below 1, "
            f"got {shown(valid_fraction)}"
        )
    order = torch.randperm(len(labels), generator=generator, device="cpu")
    order = order[labels[order].argsort(stable=True)]
    # Position i goes to validation where its running share passes a whole number.
    place = torch.arange(len(labels) + 1, dtype=torch.float64, device="cpu")
    share = (place * valid_fraction + 1e-9).floor()
    is_valid = share[1:] > share[:-1]
    return order[~is_valid], order[is_valid]

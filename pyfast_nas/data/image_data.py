"""The one form in which every data set reaches the loader, and the checks that all of them pass."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from pyfast_nas.errors import DataError

__all__ = ["ImageData", "hold_out", "shown"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)
_CHUNK = 4096  # samples converted to float at once while statistics are computed


def shown(value: object) -> str:
    """Return ``repr(value)``, free of control characters and cut at 200 characters."""
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "..."


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageData:
    """A labelled data set in memory: training and test samples, and how to normalise them.

    Build one with :meth:`create`, which checks every value, or with
    :func:`pyfast_nas.data.load_data`. Samples keep the type they are stored in (``uint8`` for
    images); a batch is ``(x / scale - mean) / std``, channel by channel.

    Shape:
        ``train_x`` ``[samples, channels, height, width]``, or ``[samples, features]`` for data
        that are not images; ``train_y`` int64 ``[samples]``; the test part likewise.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int
    class_names: tuple[str, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool  # a mirrored image keeps its class
    notes: tuple[str, ...]
    fingerprint: str

    @classmethod
    def create(
        cls,
        name: str,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        *,
        num_classes: int | None = None,
        class_names: tuple[str, ...] = (),
        scale: float | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        flip: bool = False,
        notes: tuple[str, ...] = (),
    ) -> "ImageData":
        """Check the tensors and make a data set of them.

        Args:
            name: What the data set is called in reports and messages.
            train: Samples and labels to search and train on.
            test: Samples and labels that only the final evaluation sees.
            num_classes: Number of classes; by default one more than the largest label.
            class_names: One name a class; by default the numbers.
            scale: What raw values are divided by; by default 255 for ``uint8``, else 1.
            mean: Channel means of the scaled values. By default those of the training samples
                for ``uint8``; floating-point samples are taken as normalised already.
            std: Channel standard deviations, likewise.
            flip: Whether a mirrored image keeps its class.
            notes: Remarks that a run prints and keeps, such as missing files.

        Raises:
            DataError: If a tensor has the wrong type, shape, length or values.

        Example:
            >>> x, y = torch.rand(20, 1, 8, 8), torch.arange(20) % 2
            >>> data = ImageData.create("stripes", (x, y), (x[:4], y[:4]))
            >>> data.num_classes, data.in_channels, data.image_size
            (2, 1, (8, 8))
        """
        train_x, train_y = _checked(f"{name}: train", *train)
        test_x, test_y = _checked(f"{name}: test", *test)
        if train_x.shape[1:] != test_x.shape[1:] or train_x.dtype != test_x.dtype:
            raise DataError(
                f"{name}: test samples must be {list(train_x.shape[1:])} {train_x.dtype} like the "
                f"training samples, got {list(test_x.shape[1:])} {test_x.dtype}"
            )
        if num_classes is None:
            num_classes = int(max(train_y.max(), test_y.max())) + 1
        for part, labels in (("train", train_y), ("test", test_y)):
            _check_range(f"{name}: {part}", labels, num_classes)
        if len(train_y.unique()) < 2:
            raise DataError(
                f"{name}: train labels must hold at least 2 classes, got only class "
                f"{int(train_y[0])}"
            )
        if class_names and len(class_names) != num_classes:
            raise DataError(
                f"{name}: class_names must have num_classes={num_classes} names, "
                f"got {len(class_names)}"
            )
        is_raw = not train_x.dtype.is_floating_point
        if scale is None:
            scale = 255.0 if is_raw else 1.0
        if mean is None or std is None:
            channels = train_x.shape[1]
            mean, std = (
                _statistics(train_x, scale) if is_raw else ((0.0,) * channels, (1.0,) * channels)
            )
        return cls(
            name=name,
            train_x=train_x,
            train_y=train_y,
            test_x=test_x,
            test_y=test_y,
            num_classes=num_classes,
            class_names=class_names or tuple(str(i) for i in range(num_classes)),
            scale=float(scale),
            mean=tuple(mean),
            std=tuple(std),
            flip=flip,
            notes=notes,
            fingerprint=_fingerprint(train_x, train_y, test_x, test_y),
        )

    @property
    def in_channels(self) -> int:
        """Channels of an image, or features of a sample that is not one."""
        return self.train_x.shape[1]

    @property
    def image_size(self) -> tuple[int, ...]:
        """Height and width, or ``()`` for samples that are not images."""
        return tuple(self.train_x.shape[2:])

    @property
    def is_image(self) -> bool:
        """Whether crops, flips and cutout mean anything here."""
        return self.train_x.dim() == 4


def hold_out(
    x: Tensor, y: Tensor, every: int = 5
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Split samples into training and test parts: the last of every five of a class is for testing.

    The rule looks at the order of the samples only, so the parts never change.

    Example:
        >>> train, test = hold_out(torch.arange(20).view(20, 1), torch.arange(20) % 2)
        >>> test[0].flatten().tolist()
        [8, 9, 18, 19]
    """
    is_test = torch.zeros(len(y), dtype=torch.bool, device="cpu")
    for label in y.unique().tolist():
        members = (y == label).nonzero().flatten()
        is_test[members[every - 1 :: every]] = True
    return (x[~is_test], y[~is_test]), (x[is_test], y[is_test])


def _checked(where: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return samples and int64 labels on the CPU, or say what is wrong with them."""
    for part, value in (("samples", x), ("labels", y)):
        if not isinstance(value, Tensor):
            raise DataError(f"{where} {part} must be a tensor, got {type(value).__name__}")
        if value.layout != torch.strided:
            raise DataError(f"{where} {part} must be a dense tensor, got {value.layout}")
    x, y = x.detach().cpu(), y.detach().cpu()
    if x.dtype != torch.uint8 and x.dtype not in _FLOATS:
        raise DataError(f"{where} samples must be uint8 or floating point, got {x.dtype}")
    if x.dim() == 3:  # grey images without their channel
        x = x.unsqueeze(1)
    if x.dim() not in (2, 4):
        raise DataError(
            f"{where} samples must be [samples, channels, height, width] or [samples, features], "
            f"got {list(x.shape)}"
        )
    if x.numel() == 0:
        raise DataError(f"{where} samples must not be empty, got {list(x.shape)}")
    if y.dtype not in _INTEGERS:
        raise DataError(f"{where} labels must be integers, got {y.dtype}")
    if y.shape != (len(x),):
        raise DataError(
            f"{where} labels must have shape [{len(x)}], one a sample, got {list(y.shape)}"
        )
    if x.dtype.is_floating_point:
        finite = x.isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            bad = int((~finite).nonzero()[0])
            raise DataError(f"{where} samples must be finite, got NaN or infinity in sample {bad}")
    return x.contiguous(), y.to(torch.int64).contiguous()


def _check_range(where: str, labels: Tensor, num_classes: int) -> None:
    bad = ((labels < 0) | (labels >= num_classes)).nonzero().flatten()
    if len(bad):
        raise DataError(
            f"{where} labels must be between 0 and {num_classes - 1}, "
            f"got {int(labels[bad[0]])} at index {int(bad[0])}"
        )


def _statistics(x: Tensor, scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel means and standard deviations of ``x / scale``, in float64 and in bounded memory."""
    sums = torch.zeros(2, x.shape[1], dtype=torch.float64, device="cpu")
    for chunk in x.split(_CHUNK):
        values = chunk.double().div_(scale).transpose(0, 1).flatten(1)  # [channels, values]
        sums += torch.stack([values.sum(1), values.square().sum(1)])
    mean, square = sums / (x.numel() / x.shape[1])
    # A channel without spread is shifted, not scaled.
    std = (square - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std < 1e-6, torch.ones_like(std), std)
    return tuple(mean.tolist()), tuple(std.tolist())


def _fingerprint(*tensors: Tensor) -> str:
    """SHA-256 of types, shapes and content, in hexadecimal."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{list(tensor.shape)};".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()

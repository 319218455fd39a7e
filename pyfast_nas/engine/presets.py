"""Settings that suit a data set, for every option that the caller leaves open."""

import dataclasses

__all__ = ["PRESETS", "Preset", "preset"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings that suit a data set; what the caller says goes first.

    The defaults of this class are those of the DARTS paper for CIFAR-10.
    """

    channels: int | None = 16
    cells: int | None = 8
    epochs: int = 50
    batch_size: int = 64
    compare: int = 0
    alpha_lr: float | None = None  # None keeps the algorithm's own
    train_channels: int | None = 36
    train_cells: int | None = 20
    train_epochs: int = 600
    train_batch_size: int = 96
    cutout: int = 16
    auxiliary: float = 0.4
    drop_path: float = 0.2


PRESETS = {
    # Small enough for two processor cores and a few minutes. The alphas get about a hundred steps
    # instead of the paper's 19,500 at 3e-4; with this rate they can go as far.
    "digits": Preset(
        channels=8,
        cells=3,
        epochs=10,
        compare=5,
        alpha_lr=0.05,
        train_channels=8,
        train_cells=3,
        train_epochs=10,
        train_batch_size=64,
        cutout=0,
        auxiliary=0.0,
        drop_path=0.0,
    ),
    # The toy space has no width and no depth, and its data are no images.
    "toy": Preset(
        channels=None,
        cells=None,
        epochs=10,
        train_channels=None,
        train_cells=None,
        train_epochs=10,
        train_batch_size=64,
        cutout=0,
        auxiliary=0.0,
        drop_path=0.0,
    ),
}


def preset(data_name: str, image_size: tuple[int, ...] = (32, 32)) -> Preset:
    """Return the settings for a data set, by its name.

    Others than those in :data:`PRESETS` have the settings of the DARTS paper, but images smaller
    than 32 pixels have no auxiliary classifier, which needs as many, and smaller holes.

    Args:
        data_name: Name of the data set.
        image_size: Height and width of its images; ``()`` for samples that are not images.

    Example:
        >>> preset("cifar10").epochs, preset("digits").compare, preset("mine", (16, 16)).cutout
        (50, 5, 8)
    """
    if data_name in PRESETS:
        return PRESETS[data_name]
    side = min(image_size, default=0)
    if side >= 32:
        return Preset()
    return Preset(auxiliary=0.0, cutout=side // 2)

"""The embedded data set: 1,797 handwritten digits, 8 x 8 pixels, shipped with the package."""

from importlib import resources

import numpy as np
import torch

from pyfast_nas.data.image_data import ImageData, hold_out

__all__ = ["load_digits"]


def load_digits() -> ImageData:
    """Return the UCI optical digits, split into 1,442 training and 355 test images.

    The split is fixed: in the order of the file, the last of every five images of a class is for
    testing. Pixels are 0 to 16. Mirroring is off because a mirrored digit is no digit.

    Example:
        >>> data = load_digits()
        >>> data.train_x.shape, data.num_classes
        (torch.Size([1442, 1, 8, 8]), 10)

    References:
        E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
        Learning Repository, 1998 (CC BY 4.0, see DIGITS_LICENSE.txt).
    """
    source = resources.files(__package__).joinpath("digits.npz")
    with source.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        images = torch.from_numpy(arrays["images"]).unsqueeze(1)  # [1797, 1, 8, 8]
        labels = torch.from_numpy(arrays["labels"]).to(torch.int64)
    train, test = hold_out(images, labels)
    return ImageData.create("digits", train, test, num_classes=10, scale=16.0)

"""Data sets: embedded digits, readers of published formats, batches on the device."""

from pyfast_nas.data.cifar import load_cifar10, load_cifar100
from pyfast_nas.data.digits import load_digits
from pyfast_nas.data.image_data import ImageData
from pyfast_nas.data.loader import DeviceLoader
from pyfast_nas.data.sources import load_data
from pyfast_nas.data.synthetic import synthetic_images, toy_data

__all__ = [
    "DeviceLoader",
    "ImageData",
    "load_cifar10",
    "load_cifar100",
    "load_data",
    "load_digits",
    "synthetic_images",
    "toy_data",
]

"""Benchmarks: our kernels and supernets against plain PyTorch in all its forms.

A door like the command line: nothing in the package imports it but ``pyfast-nas bench``.
"""

from pyfast_nas.bench.record import Row, read, stamp, write
from pyfast_nas.bench.session import bench
from pyfast_nas.bench.settings import WHAT, Settings

__all__ = ["WHAT", "Row", "Settings", "bench", "read", "stamp", "write"]

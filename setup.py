"""Choose what an install contains: nothing compiled, CPU kernels, or CPU and CUDA kernels.

How it is compiled is said in ``csrc/build.py``. ``PYFAST_NAS_BUILD`` (``auto``, ``none``, ``cpu``,
``cuda``) decides; with ``auto`` a failed compile leaves a working pure-Python install and its first
error in ``pyfast-nas info``.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
KIND = os.environ.get("PYFAST_NAS_BUILD", "auto")

# The package cannot be imported while it is being built, and a build may leave this folder out.
sys.path.insert(0, str(ROOT))
from csrc import build  # noqa: E402


class BuildKernels(build_ext):
    """Hand the one extension to ninja instead of to setuptools' own compiler calls."""

    def build_extension(self, ext):
        """Compile the library to where setuptools expects it, with its build record beside it."""
        target = Path(self.get_ext_fullpath(ext.name))
        work = Path(self.build_temp).resolve() / "pyfast_nas"
        record = build.build_library(target.parent, kind=KIND, work=work)
        if record["error"]:
            self.warn(f"kernels were not compiled: {record['error']}")

    def copy_extensions_to_source(self):
        """Place library and record into the checkout for an editable install."""
        for ext in self.extensions:
            name = self.get_ext_filename(self.get_ext_fullname(ext.name))
            built = Path(self.build_lib) / name
            target = ROOT / name
            for source, place in (
                (built, target),
                (built.with_name("_build_info.json"), target.with_name("_build_info.json")),
            ):
                place.unlink(missing_ok=True)
                if source.exists():
                    self.copy_file(str(source), str(place))


class StableWheel(bdist_wheel):
    """Tag a wheel with kernels as one for every Python from 3.11 on."""

    def finalize_options(self):
        """Set the stable-ABI tag where there is an extension."""
        if self.distribution.ext_modules:
            self.py_limited_api = "cp311"
        super().finalize_options()


def extensions():
    """Return the extension where this machine can build it, else nothing."""
    try:
        chosen, reason = build.choose_kind(KIND, build.find_toolchain())
    except build.BuildError as error:
        raise SystemExit(f"error: {error}") from None
    if chosen == "none":
        # Without an extension setuptools never runs BuildKernels: write the record here.
        build.build_library(ROOT / "pyfast_nas", kind="none")
        print(f"pyfast_nas: no kernels are compiled: {reason}")
        return []
    return [Extension("pyfast_nas._C", sources=[], py_limited_api=True)]


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": StableWheel},
)

"""``python -m pyfast_nas``: the same as ``pyfast-nas``."""

import sys

from pyfast_nas.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

"""``pyfast-nas info``: what is installed, which kernels serve, and what to do about it."""

import dataclasses
import json

__all__ = ["Info", "run"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """Show versions, kernels, compilers and a verdict."""

    check: bool = False
    """Run each kernel once against the reference; exit with 1 when one differs."""
    json: bool = False
    """Print the record as JSON."""


def run(options: Info) -> int:
    """Print the report; return the exit code."""
    from pyfast_nas.info import info

    record, problems = info(), []
    if options.check:
        from pyfast_nas.self_check import check

        problems = check()
    if options.json:
        print(json.dumps({**dataclasses.asdict(record), "check": problems}, sort_keys=True))
    else:
        print(record)
        if options.check:
            compiled = any("compiled" in where.values() for where in record.kernels.values())
            fine = "every kernel agrees with the reference"
            print("check      " + (fine if compiled else "no compiled kernel to check"))
            for line in problems:
                print(f"           {line}")
    return 1 if problems else 0

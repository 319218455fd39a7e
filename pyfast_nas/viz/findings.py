"""What a reader should know before believing a run: one sentence per check, good or bad."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pyfast_nas.viz.markup import printable
from pyfast_nas.viz.run_folder import RunFolder
from pyfast_nas.viz.units import number, share_of_one

__all__ = ["Finding", "examine"]

UNDECIDED = 0.95  # mean entropy over the largest possible one, above which nothing was decided
COLLAPSED = 0.5  # share of skip connections above which a cell counts as collapsed
STILL = 1e-6  # largest movement of an architecture parameter that counts as none
CLOSE = 0.02  # mean gap between best and second probability, below which a choice is a coin toss
FEW = 3  # architectures or seeds, below which a spread says little


@dataclass(frozen=True)
class Finding:
    """One line of the checklist."""

    level: Literal["good", "note", "warn"]
    text: str


def examine(run: RunFolder) -> list[Finding]:
    """Check a run folder for what makes a result doubtful; warnings come first.

    Example:
        >>> from pathlib import Path
        >>> run = RunFolder(path=Path("."), config={"search": {"epochs": 2}})
        >>> examine(run)[0].level
        'warn'
    """
    checks = (_ended, _moved, _decided, _collapsed, _learned, _compared, _data, _kernels, _alarms)
    found = [finding for check in checks for finding in check(run)]
    return sorted(found, key=lambda finding: ("warn", "note", "good").index(finding.level))


def _ended(run: RunFolder) -> Iterator[Finding]:
    wanted, done = run.config.get("search", {}).get("epochs"), len(run.epochs)
    if run.genotype is None:
        yield Finding("warn", "There is no genotype: the search did not end.")
    elif wanted == 0:
        yield Finding("warn", "No epoch was searched: the genotype is that of the random start.")
    elif isinstance(wanted, int) and done < wanted:
        yield Finding("warn", f"Only {done} of {wanted} epochs were searched.")
    elif done:
        yield Finding("good", f"All {done} epochs were searched.")


def _moved(run: RunFolder) -> Iterator[Finding]:
    if len(run.alphas) < 2:
        return
    first, last = run.alphas[0]["alphas"], run.alphas[-1]["alphas"]
    moves = [
        abs(new - old)
        for table in last
        for old_row, new_row in zip(first.get(table, []), last[table], strict=False)
        for old, new in zip(old_row, new_row, strict=False)
        if isinstance(old, int | float) and isinstance(new, int | float)
    ]
    largest = max(moves, default=0.0)
    if largest <= STILL:
        yield Finding("warn", "The architecture parameters did not move at all.")
    else:
        mean = sum(moves) / len(moves)
        yield Finding(
            "good",
            f"The architecture parameters moved: by {number(mean, 3)} on average, "
            f"by {number(largest, 3)} at most.",
        )


def _decided(run: RunFolder) -> Iterator[Finding]:
    entropy = run.in_the_end("entropy")
    if entropy is not None and entropy > UNDECIDED:
        yield Finding(
            "warn",
            f"The search is far from decided: the mean entropy of the edges is "
            f"{share_of_one(entropy)}, where 1 is an even choice. "
            "A longer search may choose otherwise.",
        )
    elif entropy is not None:
        yield Finding(
            "good",
            f"The mean entropy of the edges fell to {share_of_one(entropy)}, where 1 is an "
            "even choice.",
        )
    margin = run.in_the_end("margin")
    if margin is not None and margin < CLOSE:
        yield Finding(
            "note",
            f"On the edges the best candidate leads the second by {number(margin, 4)} "
            "in probability on average: close to a coin toss.",
        )


def _collapsed(run: RunFolder) -> Iterator[Finding]:
    if run.genotype is None:
        return
    limit = run.config.get("search", {}).get("collapse_limit", COLLAPSED)
    for table, edges in run.genotype.cells.items():
        skips = sum("skip" in edge.op for edge in edges)
        if skips > limit * len(edges):
            yield Finding(
                "warn",
                f"The {printable(table)} cell leans on skip connections ({skips} of {len(edges)} "
                "edges), the usual sign of a collapsed search.",
            )
        elif edges and any("skip" in name for name in _candidates(run, table)):
            yield Finding(
                "good",
                f"The {printable(table)} cell has {skips} skip connection{'s' * (skips != 1)} "
                f"on {len(edges)} edges.",
            )


def _candidates(run: RunFolder, table: str) -> set[str]:
    rows = run.space.candidates.get(table, ()) if run.space is not None else ()
    return {name for row in rows for name in row}


def _learned(run: RunFolder) -> Iterator[Finding]:
    loss = run.series("valid/loss")
    if len(loss) > 1 and loss[-1][1] >= loss[0][1]:
        yield Finding(
            "warn",
            f"The validation loss did not fall: {number(loss[0][1], 3)} after the first epoch, "
            f"{number(loss[-1][1], 3)} after the last.",
        )


def _compared(run: RunFolder) -> Iterator[Finding]:
    if run.evaluation is None:
        yield Finding(
            "note", "Nothing was trained from scratch: no comparison with random architectures."
        )
        return
    searched, rivals = (len(run.evaluation.get(key, [])) for key in ("searched", "random"))
    if 0 < min(searched, rivals) < 2:
        yield Finding("note", "There is no verdict on the search: one training shows no spread.")
    elif run.evaluation.get("verdict") == "tie":
        yield Finding("note", "Search and random choice are tied at this length of training.")
    elif run.evaluation.get("verdict") == "worse":
        yield Finding("warn", "Random architectures did better than the searched one.")
    for count, what in ((searched, "trainings of the result"), (rivals, "random architectures")):
        if 1 < count < FEW:
            yield Finding("note", f"There are only {count} {what}: the spread says little.")


def _data(run: RunFolder) -> Iterator[Finding]:
    for note in run.config.get("data", {}).get("notes", []):
        text = printable(note, 300)
        yield Finding("note", f"Data: {text}{'' if text.endswith('.') else '.'}")


def _kernels(run: RunFolder) -> Iterator[Finding]:
    kernels = run.config.get("kernels", {})
    slow = sorted(name for name, served in kernels.items() if served != "compiled")
    if slow:
        yield Finding(
            "note",
            f"Plain PyTorch served {', '.join(map(printable, slow))}: the result is the same, the "
            "search slower. `pyfast-nas info` says why.",
        )
    elif kernels:
        yield Finding("good", "Compiled kernels served every operator.")


def _alarms(run: RunFolder) -> Iterator[Finding]:
    # What the checks above see for themselves in the files is not said twice.
    seen = ("has collapsed", "no epoch was run", "did not move in")
    for sentence in run.warnings:
        if not any(words in sentence for words in seen):
            text = printable(sentence, 300)
            yield Finding(
                "warn", f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"
            )

"""Where a run stands: a live view in a terminal, plain lines elsewhere."""

import contextlib
import math
import time
from collections.abc import Mapping
from typing import Any, Self, TextIO

from pyfast_nas.viz.markup import printable
from pyfast_nas.viz.units import duration, memory, percent, share_of_one

__all__ = ["Display", "LiveDisplay", "PlainDisplay", "open_display"]

QUIET = 2.0  # seconds between two plain lines about steps


def open_display(stream: TextIO) -> "Display":
    """Choose the view that suits a stream."""
    with contextlib.suppress(ValueError):
        if stream.isatty():
            return LiveDisplay(stream)
    return PlainDisplay(stream)


class Display:
    """Takes the events of the engine and writes lines; a stream that fails is given up quietly.

    Args:
        stream: Where to write.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._broken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the view."""

    def update(self, event: Mapping[str, Any]) -> None:
        """Take one event.

        A display that cannot be written to must not end a search: what it shows is lost, no more.
        """
        if self._broken:
            return
        try:
            self._show(event)
        except (OSError, ValueError):
            self._broken = True

    def _show(self, event: Mapping[str, Any]) -> None:
        raise NotImplementedError


class PlainDisplay(Display):
    """One line per epoch and per trained network, and one about steps every two seconds at most.

    Example:
        >>> import sys
        >>> display = PlainDisplay(sys.stdout)
        >>> display.update({"phase": "train", "kind": "epoch", "epoch": 2, "epochs": 5,
        ...                 "train/loss": 1.25})
        epoch 2/5  loss 1.250
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._last = -math.inf

    def _show(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "step":
            if time.monotonic() - self._last < QUIET or _is_last_of_its_kind(event):
                return
            line = f"{_place(event)}  {_numbers(event)}"
        else:
            line = _line(event)
        if line:
            self._last = time.monotonic()
            print(line, file=self._stream, flush=True)


class LiveDisplay(Display):
    """A bar with the figures of the moment below finished lines."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(file=stream, highlight=False, emoji=False, markup=False)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
        )
        self._task = self._bar.add_task("starting", total=None)
        self._entropy: float | None = None  # of the last epoch, shown until the next one
        self._live = Live(self._bar, console=console, refresh_per_second=4, transient=True)
        self._live.start()

    def close(self) -> None:
        """Take the bar away and give the terminal back."""
        with contextlib.suppress(OSError, ValueError):
            self._live.stop()

    def _show(self, event: Mapping[str, Any]) -> None:
        from rich.console import Group
        from rich.text import Text

        if event["kind"] == "step":
            done, total = event["step"], event.get("steps") or 0
            if event["phase"] == "evaluation":
                total = total * event["networks"]
                done += event["index"] * event["steps"]
            self._bar.update(self._task, completed=done, total=total, description=_place(event))
            if event["phase"] == "search":
                event = {"entropy": self._entropy, **event}
            self._live.update(Group(self._bar, Text("  " + _numbers(event), style="dim")))
            return
        self._entropy = event.get("entropy", self._entropy)
        if line := _line(event):
            self._live.console.print(Text(line), soft_wrap=True)


def _line(event: Mapping[str, Any]) -> str:
    """The lasting line of an event that is no step; empty for one that needs none."""
    kind, phase = event["kind"], event["phase"]
    if kind == "start" and phase == "search":
        return _announcement(event)
    if kind == "start" and phase == "evaluation":
        return f"comparing: {event['networks']} networks, {event['epochs']} epochs each"
    if kind == "start" and phase == "pareto":
        return f"scoring architectures against their cost ({printable(event['unit'], 40)})"
    if kind == "epoch":
        return f"epoch {event['epoch']}/{event['epochs']}  {_numbers(event)}"
    if kind == "network":
        return (
            f"network {event['index'] + 1}/{event['networks']}  {event['group']}, seed "
            f"{event['seed']}: test accuracy {percent(event['accuracy'], 2)}"
        )
    return ""


def _announcement(event: Mapping[str, Any]) -> str:
    config = event["config"]
    data = config["data"]
    names = [printable(config[key]["name"], 60) for key in ("algorithm", "space", "data")]
    lines = [f"searching: {names[0]} in the {names[1]} space on {names[2]}"]
    lines.append(
        f"  {data['train']} training and {data['valid']} validation samples; "
        f"{event['epochs']} epochs of {event['steps_per_epoch']} steps; "
        f"{event['parameters']:,} supernet parameters"
    )
    served = ", ".join(f"{name} {how}" for name, how in sorted(config["kernels"].items()))
    lines.append(f"  device {config['device']}; kernels: {served}; seed {config['search']['seed']}")
    lines += [f"  note: {printable(note, 300)}" for note in data.get("notes", [])]
    return "\n".join(lines)


def _is_last_of_its_kind(event: Mapping[str, Any]) -> bool:
    """Whether the lasting line of the epoch or of the network follows at once."""
    step, steps = event["step"], event.get("steps", 0)
    if event["phase"] == "evaluation":
        return step == steps
    return steps > 0 and step * event["epochs"] == event["epoch"] * steps


def _place(event: Mapping[str, Any]) -> str:
    epoch = f"epoch {event['epoch']}/{event['epochs']}" if "epoch" in event else ""
    step = f"step {event['step']}/{event['steps']}" if "steps" in event else f"step {event['step']}"
    if event["phase"] == "evaluation":
        return f"network {event['index'] + 1}/{event['networks']}  {epoch}"
    return f"{epoch}  {step}"


def _numbers(event: Mapping[str, Any]) -> str:
    parts = []
    for what, key, show in (
        ("loss", "loss", lambda value: f"{value:.3f}"),
        ("accuracy", "accuracy", percent),
    ):
        train, valid = event.get(f"train/{key}"), event.get(f"valid/{key}")
        shown = "" if train is None else show(train)
        if valid is not None:
            shown = f"{shown} valid {show(valid)}".lstrip()
        if shown:
            parts.append(f"{what} {shown}")
    if event.get("entropy") is not None:
        parts.append(f"entropy {share_of_one(event['entropy'])}")
    if event.get("table/test") is not None:
        parts.append(f"table {event['table/test']:.2f}, rank {event['table/test_rank']}")
    if event.get("images_per_second") is not None:
        parts.append(f"{event['images_per_second']:.0f} images/s")
    if event.get("memory_bytes"):
        parts.append(memory(event["memory_bytes"]))
    if event["kind"] == "epoch" and event.get("seconds") is not None:
        parts.append(duration(event["seconds"]))
    if left := _seconds_left(event):
        parts.append(f"{duration(left)} left")
    return "  ".join(parts)


def _seconds_left(event: Mapping[str, Any]) -> float:
    """Time to the end of the phase; an evaluation has more networks of the same length to come."""
    left, rest = event.get("seconds_left") or 0.0, event.get("steps", 0) - event.get("step", 0)
    if event["phase"] == "evaluation" and rest > 0:
        networks = event["networks"] - event["index"] - 1
        left += networks * event["steps"] * left / rest
    return left

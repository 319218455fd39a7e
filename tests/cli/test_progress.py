"""The view of a running search: lines in a pipe, a live bar in a terminal, neither can end it."""

import io

import pytest

from pyfast_nas.cli import progress
from pyfast_nas.cli.progress import LiveDisplay, PlainDisplay, open_display
from pyfast_nas.engine import search

CONFIG = {
    "algorithm": {"name": "darts"},
    "space": {"name": "toy"},
    "data": {"name": "toy", "train": 8, "valid": 8, "notes": ["half \x1b[1mmissing"]},
    "kernels": {"mixed_sum": "compiled"},
    "device": "cpu",
    "search": {"seed": 1},
}
START = {"phase": "search", "kind": "start", "epochs": 2, "steps_per_epoch": 4, "parameters": 16}
STEP = {"phase": "search", "kind": "step", "epochs": 2, "epoch": 1, "steps": 8, "train/loss": 0.5}
EPOCH = {"phase": "search", "kind": "epoch", "epoch": 1, "epochs": 2, "train/accuracy": 0.5}
EPOCH |= {"entropy": 0.99999, "images_per_second": 512.3, "memory_bytes": 3 << 20, "seconds": 1.5}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines():
    stream = io.StringIO()
    display = PlainDisplay(stream)
    for event in (START | {"config": CONFIG}, EPOCH):
        display.update(event)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "searching: darts in the toy space on toy"
    assert "2 epochs of 4 steps" in lines[1]
    assert "mixed_sum compiled" in lines[2]
    assert lines[3] == r"  note: half \x1b[1mmissing"
    assert lines[4] == (
        "epoch 1/2  accuracy 50.0 %  entropy above 0.9999  512 images/s  3 MiB  1.5 s"
    )


def test_plain_lines_about_steps_come_every_two_seconds_at_most(monkeypatch):
    clock = iter([10.0, 10.0, 10.5, 11.9, 12.1, 12.1, 15.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    display = PlainDisplay(stream)
    for step in range(1, 4):
        display.update(STEP | {"step": step})
    display.update(STEP | {"step": 5})
    assert [line.split()[3] for line in stream.getvalue().splitlines()] == ["1/8", "5/8"]


def test_the_last_step_of_an_epoch_leaves_the_word_to_the_epoch():
    stream = io.StringIO()
    PlainDisplay(stream).update(STEP | {"step": 4})
    assert not stream.getvalue()


def test_live_view_shows_the_moment_and_keeps_the_lines():
    stream = Terminal()
    display = open_display(stream)
    assert isinstance(display, LiveDisplay)
    with display:
        display.update(START | {"config": CONFIG})
        display.update(STEP | {"step": 3, "seconds_left": 75.0})
        display._live.refresh()
        display.update(EPOCH | {"entropy": 0.25})
        display.update(STEP | {"step": 5, "seconds_left": 9.0})
        display._live.refresh()
    text = stream.getvalue()
    assert "step 3/8" in text and "1 min 15 s left" in text and "loss 0.500" in text
    assert "epoch 1/2  accuracy 50.0 %" in text
    assert "entropy 0.25  9.0 s left" in text


def test_time_left_of_an_evaluation_counts_the_networks_to_come():
    stream = io.StringIO()
    event = STEP | {"phase": "evaluation", "step": 2, "steps": 8, "seconds_left": 6.0}
    PlainDisplay(stream).update(event | {"networks": 3, "index": 0})
    assert stream.getvalue().endswith("22.0 s left\n")


class Full(io.StringIO):
    """A device without room."""

    def write(self, text):
        raise OSError(28, "No space left on device")


@pytest.mark.promise("P8")
def test_a_display_that_fails_changes_nothing():
    want = search("toy", "toy", epochs=1, seed=5)
    with open_display(Full()) as display:
        got = search("toy", "toy", epochs=1, seed=5, progress=display)
    assert got.history == want.history and got.genotype == want.genotype


@pytest.mark.promise("P8")
def test_a_closed_stream_is_given_up():
    stream = io.StringIO()
    display = open_display(stream)
    stream.close()
    display.update(EPOCH)
    display.update(EPOCH)

"""How the CUDA kernels of norm_mixed_sum share out a tensor: nothing left out, nothing twice."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"

# [outer, channels, inner]: runs of a channel, images too small for that, channels-last, rows.
SHAPES = [
    (2, 1, 1),
    (9, 1031, 1),
    (700, 3, 1),
    (3, 7, 15),
    (5, 16, 4),
    (4, 16, 16),
    (2, 3, 1089),
    (1, 2, 4096),
    (40, 6, 49),
    (64, 4, 1024),
    (3000, 2, 20),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 8, 64])
def test_every_element_belongs_to_one_vector(host, shape, steps):
    outer, channels, inner = shape
    for width in (1, 2, 4, 8):
        if not host.norm_takes_width(channels, inner, width):
            continue
        offsets = host.norm_shares(*shape, width, steps)["offsets"]
        assert offsets.shape[1:] <= (256, steps)
        starts = offsets[offsets >= 0]
        elements = (starts[:, None] + np.arange(width)).ravel()
        assert np.array_equal(np.sort(elements), np.arange(outer * channels * inner))
        # A thread that has a vector has one at its first step: it knows at once that it has none.
        assert (offsets[:, :, 0] >= 0)[(offsets >= 0).any(2)].all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_value_is_counted_in_its_channel(host, shape):
    _, channels, inner = shape
    for width, steps in itertools.product((1, 4), (1, 8)):
        if not host.norm_takes_width(channels, inner, width):
            continue
        shares = host.norm_shares(*shape, width, steps)
        block, thread, step = np.nonzero(shares["offsets"] >= 0)
        elements = shares["offsets"][block, thread, step, None] + np.arange(width)
        entries = np.broadcast_to(shares["entries"][block, None], elements.shape)
        if not shares["runs"]:
            entries = entries + elements % (channels * inner)
        counts = np.zeros((channels, shares["places"].max() + 1), np.int64)
        np.add.at(counts, (elements // inner % channels, entries), 1)
        for channel, places in enumerate(shares["places"]):
            assert np.array_equal(counts[channel, places], shares["values"])
            assert counts[channel].sum() == shares["values"].sum()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_thread_keeps_its_coefficients(host, shape):
    _, channels, inner = shape
    shares = host.norm_shares(*shape, 1, 8)
    offsets = shares["offsets"]
    which = offsets // inner % channels if shares["runs"] else offsets % (channels * inner)
    first = which[:, :1, :1] if shares["runs"] else which[:, :, :1]
    assert (which == first)[offsets >= 0].all()


def test_neighbours_in_a_warp_read_neighbours_in_memory(host):
    for shape, width in [((64, 16, 1024), 4), ((65536, 16, 1), 4), ((64, 16, 1024), 1)]:
        offsets = host.norm_shares(*shape, width, 8)["offsets"][0, :32, 0]
        assert np.array_equal(offsets, offsets[0] + width * np.arange(32))


def test_most_threads_have_work(host):
    for channels in range(1, 300):
        shares = host.norm_shares(1, channels, 1, 1, 1)
        assert shares["lanes"] * shares["rows"] >= 200
    for inner in range(200, 2000, 7):
        for outer in (1, 3, 8, 64):
            shares = host.norm_shares(outer, 1, inner, 1, 8)
            assert shares["lanes"] * min(shares["rows"], outer) > 128


def test_nothing_is_launched_for_nothing(host):
    for shape in [(0, 3, 0), (0, 3, 5), (2, 0, 7)]:
        shares = host.norm_shares(*shape, 1, 8)
        assert shares["offsets"].size == 0 and shares["values"].size == 0


def test_large_tensors_give_each_thread_more_to_add(host):
    few, many = (host.norm_adding_steps(numel, 4) for numel in (10_000, 2**34))
    assert few == 8 and many == 64


@pytest.mark.parametrize("source", ["norm_mixed_sum.cu", "norm_mixed_sum_backward.cu"])
def test_every_launch_is_given_back(source):
    text = (CSRC / "cuda" / source).read_text()
    launchers = re.findall(r"^cudaError_t launch_\w+\(.*?^}", text, re.M | re.S)
    assert launchers and all(launcher.count("return launch(") == 1 for launcher in launchers)


def test_every_launch_is_checked_and_guarded():
    text = (CSRC / "registration" / "norm_mixed_sum_cuda.cpp").read_text()
    assert text.count("DeviceGuard guard(") == 2
    for launch in re.finditer(r"cuda::launch_\w+", text):
        before = text[: launch.start()].rstrip()
        assert before.endswith(("check_launch(op,", "return", "?", ":"))

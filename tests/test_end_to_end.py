"""The main job on real images, from the command line to a network that needs nothing of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pyfast_nas as fnas
from pyfast_nas import _ext
from pyfast_nas.data import DeviceLoader, load_data

SAME = ("genotype.json", "alphas.jsonl", "metrics.jsonl")


def pyfast_nas(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "pyfast_nas", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("algorithm", [["darts"], ["msg-das", "--paths", "2"]], ids=lambda a: a[0])
def test_search_and_train_on_real_images(algorithm, real_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = f"cifar10:{real_data / 'cifar-10-batches-bin'}"
    searched = pyfast_nas(
        *("search", "--algorithm", *algorithm, "--space", "darts", "--data", data),
        *("--channels", "4", "--cells", "3", "--epochs", "1", "--batch-size", "50"),
        *("--compare", "0", "--seed", "0", "--output", str(run)),
    )
    assert searched.returncode == 0, searched.stderr
    assert "1000 of 50000 images" in searched.stdout
    start, end = (json.loads(line) for line in (run / "alphas.jsonl").read_text().splitlines())
    for table, rows in start["alphas"].items():
        moved = np.abs(np.array(rows) - np.array(end["alphas"][table]))
        assert moved.max() > 1e-3, f"the alphas of {table} did not move"
    assert (run / "report.html").stat().st_size > 10_000

    final = tmp_path / "final"
    trained = pyfast_nas(
        *("train", str(run / "genotype.json"), "--data", data, "--channels", "4"),
        *("--cells", "3", "--epochs", "1", "--batch-size", "50", "--output", str(final)),
    )
    assert trained.returncode == 0, trained.stderr
    script = (
        "import sys\n"
        "sys.modules['pyfast_nas'] = None\n"  # importing it now fails
        "import torch\n"
        "network = torch.export.load(sys.argv[1]).module()\n"
        "print(tuple(network(torch.zeros(2, 3, 32, 32)).shape))\n"
    )
    reloaded = subprocess.run(
        [sys.executable, "-c", script, str(final / "network.pt2")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert reloaded.stdout.strip() == "(2, 10)", reloaded.stderr


@pytest.mark.long
@pytest.mark.promise("D5")
@pytest.mark.timeout(900)
def test_one_seed_gives_the_same_bytes_on_real_images(real_data: Path, tmp_path: Path) -> None:
    data = f"cifar10:{real_data / 'cifar-10-batches-bin'}"
    for name in ("a", "b"):
        done = pyfast_nas(
            *("search", "--algorithm", "msg-das", "--data", data, "--channels", "4"),
            *("--cells", "3", "--epochs", "1", "--batch-size", "50", "--compare", "0"),
            *("--seed", "3", "--output", str(tmp_path / name)),
        )
        assert done.returncode == 0, done.stderr
    for file in SAME:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.promise("D6")
def test_kernels_and_reference_agree_on_a_darts_supernet() -> None:
    # In float32 the two differ in last bits, which ties of max pooling blow up within a few steps;
    # in float64 the runs must stay together, and so must the derived cell.
    if "compiled" not in _ext.kernels_in_use().values():
        pytest.skip("no compiled kernels for the CPU in this installation")
    data = load_data("digits")
    space = fnas.spaces.DARTS(channels=4, cells=3, in_channels=1, num_classes=10, image_size=8)

    def search(mode: str) -> fnas.algorithms.DARTS:
        with _ext.use(mode):
            torch.manual_seed(0)
            algorithm = fnas.algorithms.DARTS(alpha_lr=0.05)
            algorithm.prepare(space.supernet().double(), space=space, epochs=10, steps_per_epoch=11)
            generator = torch.Generator().manual_seed(0)
            loader = DeviceLoader(data, 64, augment=False, generator=generator, device="cpu")
            for _, ((x, y), (u, v)) in zip(range(4), loader, strict=False):
                algorithm.step((x.double(), y), (u.double(), v))
        return algorithm

    compiled, reference = search("require"), search("reference")
    for table, alpha in compiled.alphas.items():
        torch.testing.assert_close(alpha, reference.alphas[table], rtol=0, atol=1e-10)
    assert compiled.derive() == reference.derive()

"""The CPU's twin of CUDA shows what is wrong with a kernel: an error, or numbers that differ."""

import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from csrc import build
from tests import twin

TOOLS = build.find_toolchain()
PLANTED = Path(__file__).resolve().parent / "planted" / "twin.cpp"
RIGHT = [64 * tile + 63 - i for tile in range(4) for i in range(64)]
SUMS = [sum(range(64 * tile, 64 * tile + 64)) for tile in range(4)]

# Mistakes of twin.cpp, in the order there. These leave a result that is not the right one, holds
# NaN, or is another one in another order of threads and blocks.
RESULTS = {
    "none": set(),
    "off by one": {"wrong"},
    "no barrier before reading": {"wrong", "NaN"},
    "no barrier before writing again": {"wrong", "another order"},
    "no barrier between warps": {"wrong", "NaN", "another order"},
    "no barrier in a warp": {"wrong", "NaN"},
    "unwritten": {"wrong", "NaN"},
    "order of blocks": {"another order"},
}
# These are refused in these words.
REFUSALS = {
    "barrier of some threads": r"threads wait at different barriers, in lines \d+ and \d+",
    "return before a barrier": r"a barrier that not every thread comes to, in line \d+",
    "two barriers": r"threads wait at different barriers, in lines \d+ and \d+",
    "shuffle of some lanes": r"a barrier that not every thread comes to, in line \d+",
    "misaligned": "a vector access that is not aligned to 16 bytes",
    "too many blocks": "invalid configuration argument",
}
MISTAKES = [*RESULTS, *REFUSALS]


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """Compile the planted kernels and the twin into a program."""
    if not TOOLS.cxx:
        pytest.skip("no C++ compiler is here to compile the planted kernels")
    program = tmp_path_factory.mktemp("twin") / "planted"
    flags = ["-std=c++17", "-O1", "-DPFN_TWIN", "-Wno-unknown-pragmas", f"-I{build.SOURCES}"]
    sources = [str(PLANTED), str(build.SOURCES / "twin" / "block.cpp")]
    command = [TOOLS.cxx, *flags, *sources, "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def outputs(program: Path, mistake: str) -> list[str]:
    """Return what the program prints in each order."""
    command = [str(program), str(MISTAKES.index(mistake))]
    return [
        subprocess.run(
            command,
            env={**os.environ, "PFN_TWIN_ORDER": order},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
        for order in twin.ORDERS
    ]


@pytest.mark.parametrize("mistake", RESULTS)
def test_a_wrong_result_shows(planted: Path, mistake: str) -> None:
    texts = outputs(planted, mistake)
    results = [[float(word) for word in text.split()] for text in texts]
    signs = {
        "wrong": any(result[:-1] != [*RIGHT, *SUMS] for result in results),
        "NaN": any(map(math.isnan, itertools.chain(*results))),
        "another order": len(set(texts)) > 1,
    }
    assert {sign for sign, shows in signs.items() if shows} == RESULTS[mistake], texts


@pytest.mark.parametrize("mistake", REFUSALS)
def test_what_a_gpu_leaves_undefined_is_refused(planted: Path, mistake: str) -> None:
    for text in outputs(planted, mistake):
        assert re.match("refused: " + REFUSALS[mistake] + "\n", text), text


def test_an_unknown_order_is_refused(planted: Path) -> None:
    variables = {**os.environ, "PFN_TWIN_ORDER": "sideways"}
    done = subprocess.run([str(planted), "0"], env=variables, capture_output=True, text=True)
    assert "PFN_TWIN_ORDER must be forward, backward or random, got sideways" in done.stdout


# Every kernel that the operators launch, and what they make of the same numbers.
DIGEST = """
import hashlib, torch
from pyfast_nas import _ext, ops
assert _ext.library().record["kind"] == "twin"
digest = hashlib.sha256()
def take(*tensors):
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
generator = torch.Generator().manual_seed(0)
draw = lambda *shape: torch.randn(shape, generator=generator)
for dtype in (torch.float64, torch.float32, torch.float16):
    for count, numel in ((1, 1), (3, 6007), (8, 4096), (70, 300)):
        xs = [draw(numel).to(dtype).requires_grad_() for _ in range(count)]
        weights = draw(count).to(dtype).requires_grad_()
        y = ops.mixed_sum(xs, weights)
        take(y, *torch.autograd.grad(y, [weights, *xs], draw(numel).to(dtype)))
    ps, us, hs, zs = ([draw(k % 97).to(dtype) for k in range(300)] for _ in range(4))
    ops.tensor_list.neumann_step_(ps, us, hs, 0.3)
    state = ops.tensor_list.cg_start(us)
    ops.tensor_list.cg_step_(zs, us, hs, [2 * h for h in hs], state)
    sums = ops.tensor_list.dot(ps, hs), ops.tensor_list.norm(us)
    take(*ps, *us, *zs, state, torch.stack(sums))
seed = torch.tensor([2024, 3])
for rows, columns, k in ((300, 8, 2), (33, 64, 7), (3, 65, 2), (2, 300, 70)):
    for dtype in (torch.float64, torch.float32):
        for relaxation in ("shared", "conditional", "subset"):
            logits = draw(rows, columns).to(dtype).requires_grad_()
            weights, indices = ops.gumbel_topk(logits, k, tau=0.8, seed=seed, relaxation=relaxation)
            take(weights, indices, *torch.autograd.grad(weights.square().sum(), logits))
    take(ops.philox_uniform(seed, rows, columns, stream=2))
print(digest.hexdigest())
"""


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.skipif(not (TOOLS.cxx and TOOLS.ninja), reason="no C++ compiler or no ninja here")
def test_kernels_give_the_same_bits_in_every_order() -> None:
    twin.build_into(twin.FOLDER)
    digests = [
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env=twin.environment(order),
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        ).stdout
        for order in twin.ORDERS
    ]
    assert len(set(digests)) == 1

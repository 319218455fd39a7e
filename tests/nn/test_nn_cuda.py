"""Super-nets on a GPU: the values of the CPU, half precision, and no wait for the host."""

import contextlib

import pytest
import torch

from pyfast_nas.nn import GumbelTopK, Softmax
from pyfast_nas.spaces import DARTS

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

FLOAT64 = {"rtol": 1e-8, "atol": 1e-8}  # other orders of summation in convolutions and norms


def search():
    space = DARTS(channels=4, cells=3, image_size=16)
    net = space.supernet(torch.Generator().manual_seed(0)).double()
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return net, x


def gates_of(net, gate, seed=None):
    return {table: gate(logits, seed) for table, logits in net.logits().items()}


@contextlib.contextmanager
def no_wait():
    """Raise at whatever makes the host wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("path", ["all", "one"])
def test_same_values_as_on_the_cpu(grad, path):
    results = []
    for device in ("cpu", "cuda"):
        net, x = search()
        net, x = net.to(device), x.to(device)
        if path == "all":
            gates = gates_of(net, Softmax())
        else:
            seed = torch.tensor([3, 1], device=device)
            gates = {t: next(g.split()) for t, g in gates_of(net, GumbelTopK(2), seed).items()}
        with torch.set_grad_enabled(grad):
            y = net(x, gates)
        found = [y.detach()]
        if grad:
            found += torch.autograd.grad(y.pow(2).sum(), net.arch_parameters())
        results.append([tensor.cpu() for tensor in found])
    torch.testing.assert_close(results[1], results[0], **FLOAT64)


def test_a_step_never_waits():
    net, x = search()
    net, x = net.float().cuda(), x.float().cuda()
    seed = torch.tensor([3, 1], device="cuda")
    for attempt in range(2):  # the first pass may load kernels
        single = {t: next(g.split()) for t, g in gates_of(net, GumbelTopK(2), seed).items()}
        with contextlib.nullcontext() if attempt == 0 else no_wait():
            net(x, gates_of(net, Softmax())).sum().backward()
            net(x, single).sum().backward()
            with torch.no_grad():
                net(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    net, x = search()
    net, x = net.float().cuda(), x.float().cuda()
    want = net(x)
    with torch.autocast("cuda", dtype):
        got = net(x)
    # Rounding to 8 or 11 bits in every layer of three cells.
    torch.testing.assert_close(got.float(), want, rtol=0.1, atol=0.1)
    got.float().sum().backward()
    assert all(alpha.grad.dtype == torch.float32 for alpha in net.arch_parameters())

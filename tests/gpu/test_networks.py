"""Supernets and searches: the values of the CPU, no wait for the host, CUDA graphs, autocast."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import pyfast_nas
from pyfast_nas import _ext, ops
from pyfast_nas.bench.networks import DARTSCase, NASBench201Case
from pyfast_nas.bench.parts import CellCase, EdgeCase, NodeCase
from pyfast_nas.bench.plain_darts import PlainDARTS
from pyfast_nas.bench.steps import StepCase
from pyfast_nas.nn import GumbelTopK, Softmax
from pyfast_nas.spaces import DARTS
from tests.gpu.devices import on_each_device, on_each_device_reduced, over_grid
from tests.gpu.graphs import captured

FLOAT64 = {"rtol": 1e-8, "atol": 1e-8}  # other orders of summation in convolutions and norms
NETWORKS = (
    EdgeCase(batch=2, channels=4, size=8),
    NodeCase(batch=2, channels=6, size=8, stride=2),
    CellCase(batch=2, channels=4, size=8, reduction=True),
    DARTSCase(batch=2, channels=4, cells=3, size=16),
    NASBench201Case(batch=2, channels=4, blocks=1, size=16),
)
STEP = StepCase(net=DARTSCase(batch=2, channels=4, cells=2, size=8))
SEARCHES = ("first-order DARTS", "MSG-DAS, K = 2")


def search(device="cpu", dtype=torch.float64):
    """Return a small supernet and a batch."""
    space = DARTS(channels=4, cells=3, image_size=16)
    net = space.supernet(torch.Generator().manual_seed(0)).to(device, dtype)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return net, x.to(device, dtype)


def accelerated(device="cpu", dtype=torch.float32):
    """Return a plain supernet with batch norms that track statistics, taken over, and a batch."""
    torch.manual_seed(0)
    net = PlainDARTS(4, 3, 10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.track_running_stats:
            module.track_running_stats = True
            zeros, counter = torch.zeros(module.num_features), torch.tensor(0)
            module.running_mean, module.running_var = zeros, zeros + 1
            module.num_batches_tracked = counter
    net = net.to(device, dtype)
    report = pyfast_nas.accelerate(net)
    assert report.replaced and not report.left_alone
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return net, x.to(device, dtype)


def gates_of(net, gate, seed=None):
    return {table: gate(logits, seed) for table, logits in net.logits().items()}


@pytest.mark.promise("K1")
@over_grid("case", NETWORKS, 1, lambda case: type(case).__name__)
def test_networks_compute_what_plain_ones_do(device, case):
    ours = [name for name in ("fused", "accelerate") if name in case.providers]
    case.check({name: case.workload(name, device=device) for name in ours}, device)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("path", ["all", "one"])
@on_each_device
def test_same_values_as_on_the_cpu(device, grad, path):
    results = []
    for place in ("cpu", device):
        net, x = search(place)
        if path == "all":
            gates = gates_of(net, Softmax())
        else:
            seed = torch.tensor([3, 1], device=place)
            gates = {t: next(g.split()) for t, g in gates_of(net, GumbelTopK(2), seed).items()}
        with torch.set_grad_enabled(grad):
            y = net(x, gates)
        found = [y.detach()]
        if grad:
            found += torch.autograd.grad(y.pow(2).sum(), net.arch_parameters())
        results.append([tensor.cpu() for tensor in found])
    torch.testing.assert_close(results[1], results[0], **FLOAT64)


@pytest.mark.promise("D6")
@pytest.mark.parametrize("search_name", SEARCHES)
@on_each_device
def test_a_search_step_equals_that_of_the_cpu(device, search_name):
    results = [
        [t.cpu() for t in STEP.stepper("fused", search_name, torch.float64, place).results()]
        for place in ("cpu", device)
    ]
    assert any(bool(moved.any()) for moved in results[0][1:])
    torch.testing.assert_close(results[1], results[0], **FLOAT64)


@pytest.mark.parametrize("make", [search, accelerated])
@on_each_device
def test_a_pass_never_waits(device, make, never_waits):
    net, x = make(device, torch.float32)
    calls = [lambda: net(x)]
    if make is search:
        seed = torch.tensor([3, 1], device=device)
        single = {t: next(g.split()) for t, g in gates_of(net, GumbelTopK(2), seed).items()}
        calls += [lambda: net(x, gates_of(net, Softmax())), lambda: net(x, single)]

    def both(call):
        call().sum().backward(retain_graph=True)  # the samples are drawn once
        with torch.no_grad():
            call()

    for call in calls:
        both(call)  # the first pass may load kernels
        with never_waits():
            both(call)


@pytest.mark.promise("K19")
@pytest.mark.parametrize("make", [search, accelerated])
@on_each_device
def test_graphs_replay_a_pass(device, make):
    """New images and new weights are copied in; the replay gives what a plain call gives."""
    static, x = make(device, torch.float32)
    eager = copy.deepcopy(static)
    if make is accelerated:
        pyfast_nas.accelerate(eager)

    def run(net, images):
        y = net(images)
        leaves = list(net.parameters())
        gradients = torch.autograd.grad(y.square().sum(), leaves, materialize_grads=True)
        return [y.detach(), *gradients]

    graph, results = captured(lambda: run(static, x), device)
    for seed in range(3):
        torch.manual_seed(seed)
        with torch.no_grad():
            x.copy_(torch.randn(x.shape))
            for here, there in zip(static.parameters(), eager.parameters(), strict=True):
                here.add_(0.01 * torch.randn_like(here))
                there.copy_(here)
        graph.replay()
        # cuDNN may take another convolution in a graph.
        for got, want in zip(results, run(eager, x), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@on_each_device
def test_autocast(device, dtype):
    net, x = search(device, torch.float32)
    want = net(x)
    with torch.autocast(device, dtype):
        got = net(x)
    # Rounding to 8 or 11 bits in every layer of three cells.
    torch.testing.assert_close(got.float(), want, rtol=0.1, atol=0.1)
    got.float().sum().backward()
    assert all(alpha.grad.dtype == torch.float32 for alpha in net.arch_parameters())


class Served(TorchDispatchMode):
    """Counts fused nodes and convolutions that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = {"fused_node": 0, "convolution": 0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for name in self.counts:
            self.counts[name] += name in str(func) and "backward" not in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.promise("K15")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [search, accelerated])
@on_each_device_reduced
def test_fused_nodes_under_autocast_are_at_most_twice_as_wrong_as_modules(
    device, make, dtype, kernels
):
    if not ops.serves_fused_node(torch.ones(1, 1, 1, 1, dtype=dtype, device=device)):
        pytest.skip("no kernel of this library takes 16-bit maps")
    net, x = make(device, torch.float32)

    def run(mode, dtype):
        here = copy.deepcopy(net).double() if dtype is torch.float64 else copy.deepcopy(net)
        with _ext.use(mode), Served() as served:
            with torch.autocast(device, dtype, enabled=dtype is not torch.float64):
                y = here(x.double() if dtype is torch.float64 else x)
            leaves = list(here.parameters())
            gradients = torch.autograd.grad(y.double().square().sum(), leaves)
        flat = torch.cat([g.double().flatten() for g in gradients])
        buffers = [b.double().flatten() for b in here.buffers() if b.is_floating_point()]
        moved = torch.cat([*buffers, flat.new_zeros(1)])
        return [y.detach().double(), flat, moved], served.counts

    got, counts = run("require", dtype)
    plain, of_modules = run("reference", dtype)
    truth, _ = run("reference", torch.float64)
    assert counts["fused_node"] and counts["convolution"] < of_modules["convolution"] / 10
    for one, other, exact in zip(got, plain, truth, strict=True):
        assert (one - exact).norm() <= 2 * (other - exact).norm()

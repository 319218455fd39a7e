"""Candidates by structure: what is known, what is not, and that the fused node computes the same.

Every comparison is between a module run through the fused node and a copy of it run as it stands.
"""

import copy
import io
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from pyfast_nas import _ext
from pyfast_nas.nn import MixedOp, frozen_statistics
from pyfast_nas.nn.drop_block import DropBlocks
from pyfast_nas.nn.gates import GateOutput
from pyfast_nas.nn.mixed_op import mix_edges
from pyfast_nas.nn.primitives import PRIMITIVES, FactorizedReduce, SkipConnect, Zero
from pyfast_nas.nn.recognition import recognise

FLOAT64 = {"rtol": 1e-9, "atol": 1e-11}  # batch norms amplify the order of summation
CHANNELS = 5


def norm(channels=CHANNELS, **options):
    return nn.BatchNorm2d(channels, **options)


def depthwise(size=3, dilation=1, stride=1, channels=CHANNELS, **options):
    options = {"padding": dilation * (size - 1) // 2, "bias": False} | options
    return nn.Conv2d(
        channels, channels, size, stride, dilation=dilation, groups=channels, **options
    )


def pointwise(c_in=CHANNELS, c_out=CHANNELS, **options):
    return nn.Conv2d(c_in, c_out, 1, **{"bias": False} | options)


def full(size=3, dilation=1, stride=1, c_out=CHANNELS, **options):
    options = {"padding": dilation * (size - 1) // 2, "bias": False} | options
    return nn.Conv2d(CHANNELS, c_out, size, stride, dilation=dilation, **options)


def stage(size=3, dilation=1, stride=1, c_out=CHANNELS, **options):
    conv = depthwise(size, dilation, stride)
    return [nn.ReLU(), conv, pointwise(c_out=c_out), norm(c_out, **options)]


def average(stride=1, **options):
    options = {"padding": 1, "count_include_pad": False} | options
    return nn.AvgPool2d(3, stride, **options)


KNOWN = {
    "identity": (lambda: nn.Identity(), ("skip", 1, None, None)),
    "nothing": (lambda: nn.Sequential(), ("skip", 1, None, None)),
    "nested identity": (
        lambda: nn.Sequential(nn.Sequential(nn.Identity())),
        ("skip", 1) + (None,) * 2,
    ),
    "skip connection": (SkipConnect, ("skip", 1, None, None)),
    "zero": (lambda: Zero(2), ("zero", 2, None, None)),
    "max pool": (lambda: nn.MaxPool2d(3, 2, 1), ("max_pool", 2, None, None)),
    "max pool, norm": (
        lambda: nn.Sequential(nn.MaxPool2d((3, 3), 1, (1, 1)), norm()),
        ("max_pool", 1, CHANNELS, CHANNELS),
    ),
    "average pool": (lambda: average(2), ("avg_pool", 2, None, None)),
    "average pool, norm": (
        lambda: nn.Sequential(nn.Sequential(average()), norm()),
        ("avg_pool", 1, CHANNELS, CHANNELS),
    ),
    "separable": (
        lambda: nn.Sequential(*stage(5, stride=2), *stage(5)),
        ("conv", 2, CHANNELS, CHANNELS),
    ),
    "separable, nested": (
        lambda: nn.Sequential(nn.Sequential(*stage()), nn.Identity(), nn.Sequential(*stage(7))),
        ("conv", 1, CHANNELS, CHANNELS),
    ),
    "dilated": (lambda: nn.Sequential(*stage(5, 3)), ("conv", 1, CHANNELS, CHANNELS)),
    "padding by name": (
        lambda: nn.Sequential(
            nn.ReLU(), depthwise(3, 2, padding="same"), pointwise(padding="valid"), norm()
        ),
        ("conv", 1, CHANNELS, CHANNELS),
    ),
    "other width": (lambda: nn.Sequential(*stage(c_out=7)), ("conv", 1, CHANNELS, 7)),
    "relu, conv, norm": (
        lambda: nn.Sequential(nn.ReLU(), pointwise(c_out=3), norm(3)),
        ("conv", 1, CHANNELS, 3),
    ),
    "relu, conv, norm, strided": (
        lambda: nn.Sequential(nn.ReLU(), pointwise(stride=2), norm()),
        ("conv", 2, CHANNELS, CHANNELS),
    ),
    "full convolution": (
        lambda: nn.Sequential(nn.ReLU(), full(c_out=3), norm(3)),
        ("conv", 1, CHANNELS, 3),
    ),
    "full convolutions, dilated, strided": (
        lambda: nn.Sequential(nn.ReLU(), full(5, 2, 2), norm(), *stage()),
        ("conv", 2, CHANNELS, CHANNELS),
    ),
    "full convolution with bias": (
        lambda: nn.Sequential(nn.ReLU(), full(bias=True), norm()),
        ("conv", 1, CHANNELS, CHANNELS),
    ),
    "separable with bias": (
        lambda: nn.Sequential(
            *stage(stride=2), nn.ReLU(), depthwise(), pointwise(bias=True), norm()
        ),
        ("conv", 2, CHANNELS, CHANNELS),
    ),
    "in-place relu inside": (
        lambda: nn.Sequential(*stage(), nn.ReLU(inplace=True), *stage()[1:]),
        ("conv", 1, CHANNELS, CHANNELS),
    ),
}


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class Wrapped(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.op = nn.Sequential(*layers)

    def forward(self, x):
        return self.op(x)


UNKNOWN = {
    "full convolution without padding": lambda: nn.Sequential(nn.ReLU(), full(padding=0), norm()),
    "even full convolution": lambda: nn.Sequential(nn.ReLU(), full(4, padding=2), norm()),
    "full convolution in groups": lambda: nn.Sequential(nn.ReLU(), full(groups=CHANNELS), norm()),
    "full convolution, then pointwise": lambda: nn.Sequential(
        nn.ReLU(), full(), pointwise(), norm()
    ),
    "depthwise bias": lambda: nn.Sequential(nn.ReLU(), depthwise(bias=True), pointwise(), norm()),
    "no relu": lambda: nn.Sequential(depthwise(), pointwise(), norm()),
    "relu6": lambda: nn.Sequential(nn.ReLU6(), depthwise(), pointwise(), norm()),
    "no norm": lambda: nn.Sequential(nn.ReLU(), depthwise(), pointwise()),
    "another norm": lambda: nn.Sequential(nn.ReLU(), pointwise(), nn.GroupNorm(1, CHANNELS)),
    "synchronised norm": lambda: nn.Sequential(nn.ReLU(), pointwise(), nn.SyncBatchNorm(CHANNELS)),
    "padding": lambda: nn.Sequential(nn.ReLU(), depthwise(padding=0), pointwise(), norm()),
    "padding of ones": lambda: nn.Sequential(nn.ReLU(), pointwise(padding=1), norm()),
    "reflected padding": lambda: nn.Sequential(
        nn.ReLU(), depthwise(padding_mode="reflect"), pointwise(), norm()
    ),
    "even kernel": lambda: nn.Sequential(nn.ReLU(), depthwise(4, padding=2), pointwise(), norm()),
    "oblong kernel": lambda: nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, (3, 1), padding=(1, 0), groups=CHANNELS, bias=False),
        pointwise(),
        norm(),
    ),
    "multiplier": lambda: nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, padding=1, groups=CHANNELS, bias=False),
        pointwise(2 * CHANNELS),
        norm(),
    ),
    "grouped pointwise": lambda: nn.Sequential(
        nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2, bias=False), norm(4)
    ),
    "stride in the second stage": lambda: nn.Sequential(*stage(), *stage(stride=2)),
    "stride in the pointwise": lambda: nn.Sequential(
        nn.ReLU(), depthwise(), pointwise(stride=2), norm()
    ),
    "stride three": lambda: nn.Sequential(*stage(stride=3)),
    "three stages": lambda: nn.Sequential(*stage(), *stage(), *stage()),
    "another width inside": lambda: nn.Sequential(
        *stage(c_out=7), nn.ReLU(), depthwise(channels=7), pointwise(7), norm()
    ),
    "dropout": lambda: nn.Sequential(*stage(), nn.Dropout(0.1)),
    "pool of five": lambda: nn.MaxPool2d(5, 1, 2),
    "pool with ceiling": lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "dilated pool": lambda: nn.MaxPool2d(3, 1, 1, dilation=2),
    "pool with indices": lambda: nn.MaxPool2d(3, 1, 1, return_indices=True),
    "padding counts": lambda: average(count_include_pad=True),
    "divisor": lambda: average(divisor_override=4),
    "two norms": lambda: nn.Sequential(nn.MaxPool2d(3, 1, 1), norm(), norm()),
    "pool, relu": lambda: nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.ReLU()),
    "own forward": lambda: Doubled(*stage()),
    "wrapped": lambda: Wrapped(*stage()),
    "a norm alone": norm,
    "subclass of a layer": lambda: nn.Sequential(
        nn.ReLU(), type("C", (nn.Conv2d,), {})(5, 5, 1), norm()
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known(name):
    make, want = KNOWN[name]
    recipe = recognise(make())
    assert (recipe.kind, recipe.stride, recipe.in_channels, recipe.out_channels) == want
    assert recipe.certain


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown(name):
    assert recognise(UNKNOWN[name]()) is None


def test_every_candidate_of_ours_is_known():
    for (name, make), stride in itertools.product(PRIMITIVES.items(), (1, 2)):
        recipe = recognise(make(2 * CHANNELS, stride, True, True))
        if name == "noise":  # reads nothing of its input
            assert recipe is None
            continue
        assert recipe.stride == stride and recipe.certain
        assert recipe.needs_even_sides == ((name, stride) == ("skip_connect", 2))


def test_a_chain_of_two_convolutions_is_no_factorised_reduction():
    """The same layers one after another, which could not even run."""
    reduce = FactorizedReduce(CHANNELS, 2 * CHANNELS)
    layers = [reduce.relu, reduce.conv0, reduce.conv1, reduce.bn]
    assert recognise(reduce) is not None
    assert recognise(nn.Sequential(*layers)) is None
    for name, value in (("stride", (1, 1)), ("kernel_size", (3, 3)), ("groups", 2)):
        other = FactorizedReduce(2 * CHANNELS, 2 * CHANNELS)
        setattr(other.conv1, name, value)
        assert recognise(other) is None


def test_a_wrapper_is_never_certain():
    recipe = recognise(Wrapped(*stage()), wrappers=True)
    assert recipe.kind == "conv" and not recipe.certain
    # What it would do with a parameter, or with a list that can change, nobody can tell.
    for name, value in (("scale", nn.Parameter(torch.ones(()))), ("sizes", [3])):
        module = Wrapped(*stage())
        setattr(module, name, value)
        assert recognise(module, wrappers=True) is None


def randomise(module):
    """Values that no term of a formula is blind to."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
                if tensor.dim() > 1:
                    sign = torch.rand(tensor.shape, generator=generator) < 0.5
                    tensor.mul_(torch.where(sign, -1.0, 1.0))
    return module


def images(step=0, channels=CHANNELS, dtype=torch.float64, size=(8, 6)):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(3, channels, *size, generator=generator, dtype=dtype)


def run(edge, x, weights):
    """Output, gradients of everything, and the state afterwards."""
    x, weights = x.clone().requires_grad_(), weights.clone().requires_grad_()
    y = edge(x, weights)
    parameters = [p for p in edge.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(
        (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum(),
        [x, weights, *parameters],
    )
    return y.detach(), gradients


def assert_same(edge, steps=2, dtype=torch.float64, tolerance=FLOAT64, size=(8, 6), **options):
    """Both ways for some steps: outputs, gradients, buffers."""
    twin = copy.deepcopy(edge)
    weights = torch.linspace(-1, 2, edge.num_ops, dtype=dtype)
    for step in range(steps):
        x = images(step, dtype=dtype, size=size, **options)
        with _ext.use("reference"):
            want = run(twin, x, weights)
        torch.testing.assert_close(run(edge, x, weights), want, **tolerance)
        torch.testing.assert_close(dict(edge.state_dict()), dict(twin.state_dict()), **tolerance)


def known_candidates(stride, width=CHANNELS):
    """One of everything that gives the same shape."""
    modules = {}
    for name, (make, (kind, *_)) in KNOWN.items():
        module = make()
        recipe = recognise(module)
        if (
            kind != "zero"
            and recipe.stride == stride
            and recipe.in_channels in (None, CHANNELS)
            and recipe.out_channels in (None, width)
        ):
            modules[name.replace(".", "")] = module
    return modules


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracking", [0.1, 1.0, None, "off"])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_as_the_modules(stride, tracking, affine, training, fused_nodes):
    modules = known_candidates(stride)
    for module in modules.values():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                momentum = 0.1 if tracking == "off" else tracking
                options = {"momentum": momentum, "track_running_stats": tracking != "off"}
                layer.__init__(layer.num_features, eps=1e-3, affine=affine, **options)
    edge = randomise(MixedOp(modules).double()).train(training)
    assert_same(edge, size=(7, 6))
    # In front of given statistics a bias does not cancel out.
    plain = sum("bias" in name for name in modules) if not training and tracking != "off" else 0
    assert fused_nodes == [len(modules) - plain] * 2


def test_other_widths(fused_nodes):
    modules = [nn.Sequential(*stage(c_out=7)), nn.Sequential(*stage(5, 2, c_out=7, momentum=0.3))]
    assert_same(randomise(MixedOp(modules).double()))
    assert fused_nodes == [2, 2]


def test_layers_in_modes_of_their_own(fused_nodes):
    """A frozen norm, one with another momentum, one that is evaluated without statistics."""
    edge = MixedOp([nn.Sequential(*stage(), *stage()) for _ in range(4)])
    edge.candidate(0)[3].eval()
    edge.candidate(1)[7].momentum = 0.7
    edge.candidate(2)[3].track_running_stats = False
    edge.candidate(3)[3] = norm(track_running_stats=False).eval()
    for parameter in edge.candidate(1)[3].parameters():
        parameter.requires_grad_(False)
    assert_same(randomise(edge.double()), steps=3)
    assert fused_nodes == [4] * 3


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (5, 4)])
def test_small_images(size, fused_nodes):
    assert_same(randomise(MixedOp(known_candidates(2)).double()), size=size)
    assert fused_nodes


def test_single_precision_statistics_follow_torch():
    """They move in double precision from statistics that are exact to single precision."""
    edge = randomise(MixedOp(known_candidates(1)).float())
    twin = copy.deepcopy(edge).double()
    weights = torch.ones(edge.num_ops)
    for step in range(20):
        x = images(step, dtype=torch.float32) + 3
        with torch.no_grad():
            edge(x, weights)
            with _ext.use("reference"):
                twin(x.double(), weights.double())
    for name, value in edge.named_buffers():
        # A rounding a step, of the mean and of the running mean.
        want = twin.get_buffer(name)
        torch.testing.assert_close(value.to(want.dtype), want, rtol=1e-5, atol=1e-5)
    assert {int(n) for k, n in edge.named_buffers() if k.endswith("tracked")} == {20}


def test_frozen_statistics(fused_nodes):
    edge = randomise(MixedOp(known_candidates(1)).double())
    before = {name: value.clone() for name, value in edge.named_buffers()}
    weights = torch.ones(edge.num_ops, dtype=torch.float64)
    moved = edge(images(), weights)
    after = {name: value.clone() for name, value in edge.named_buffers()}
    assert all(not torch.equal(after[name], value) for name, value in before.items())
    with frozen_statistics(edge):
        torch.testing.assert_close(edge(images(), weights), moved, rtol=0, atol=0)
    assert all(torch.equal(after[name], value) for name, value in edge.named_buffers())
    assert len(fused_nodes) == 2


def test_one_value_per_channel_is_refused_as_torch_refuses_it(fused_nodes):
    edge = MixedOp([nn.Sequential(*stage())])
    with pytest.raises(ValueError, match=r"more than (one|1) value per channel when training"):
        edge(torch.ones(1, CHANNELS, 1, 1), torch.ones(1))
    edge.eval()(torch.ones(1, CHANNELS, 1, 1), torch.ones(1))
    assert fused_nodes


class Spy:
    """A hook that counts."""

    def __init__(self):
        self.calls = 0

    def __call__(self, *_):
        self.calls += 1


HOOKS = (
    *("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"),
    "register_full_backward_pre_hook",
)


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("where", ["", "1", "3"])
def test_a_hook_anywhere_is_called(kind, where, fused_nodes):
    edge = randomise(MixedOp([nn.Sequential(*stage()), nn.MaxPool2d(3, 1, 1)]).double())
    spy = Spy()
    handle = getattr(edge.candidate(0).get_submodule(where), kind)(spy)
    assert_same(edge, steps=1)
    assert fused_nodes == [1] and spy.calls == 1
    handle.remove()
    assert_same(edge, steps=1)
    assert fused_nodes == [1, 2] and spy.calls == 1


def test_a_global_hook_sees_every_module(fused_nodes):
    edge = MixedOp([nn.Sequential(*stage())])
    spy = Spy()
    handle = nn.modules.module.register_module_forward_hook(spy)
    try:
        edge(images(dtype=torch.float32), torch.ones(1))
    finally:
        handle.remove()
    assert spy.calls == 6 and not fused_nodes


def parametrized(edge):
    parametrizations.orthogonal(edge.candidate(0)[2])


def weight_normed(edge):
    parametrizations.weight_norm(edge.candidate(0)[2])


def pruned(edge):
    prune.random_unstructured(edge.candidate(0)[1], "weight", 0.5)


def overridden(edge):
    conv = edge.candidate(0)[1]
    conv.forward = lambda x: 2 * type(conv).forward(conv, x)


def dilated(edge):
    edge.candidate(0)[1].dilation = edge.candidate(0)[1].padding = (2, 2)


def replaced(edge):
    edge.candidate(0)[1] = depthwise(5)


def made_linear(edge):
    edge.candidate(0)[0] = nn.Identity()


def exchanged(edge):
    edge.candidates[edge.names[0]] = nn.Sequential(*stage(7), *stage(3))


def grown(edge):
    edge.candidate(0).append(nn.Tanh())


@pytest.mark.parametrize(
    ("change", "fused"),
    [
        (parametrized, 1),
        (weight_normed, 1),
        (pruned, 1),
        (overridden, 1),
        (dilated, 2),
        (replaced, 2),
        (made_linear, 1),
        (exchanged, 2),
        (grown, 1),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_change_after_the_first_call_is_seen(change, fused, fused_nodes):
    edge = MixedOp({"a": nn.Sequential(*stage()), "b": nn.MaxPool2d(3, 1, 1)}).double()
    weights = torch.ones(2, dtype=torch.float64)
    edge(images(), weights)
    change(edge)
    edge.double()
    got = edge(images(1), weights)
    assert fused_nodes == [2, fused]
    with _ext.use("reference"):
        torch.testing.assert_close(got, edge(images(1), weights), **FLOAT64)


class Tripled(nn.Module):
    def forward(self, values):
        return 3 * values


def test_a_bias_that_is_computed_elsewhere_is_left_to_the_module(fused_nodes):
    """It is part of the running mean, and has a gradient of its own."""
    edge = randomise(MixedOp([nn.Sequential(nn.ReLU(), full(bias=True), norm())]).double())
    assert_same(edge)
    parametrize.register_parametrization(edge.candidate(0)[1], "bias", Tripled())
    assert_same(edge)
    assert fused_nodes == [1, 1]


def test_parameters_are_read_at_each_call(fused_nodes):
    edge = randomise(MixedOp([nn.Sequential(*stage(), *stage())]).double())
    weights = torch.ones(1, dtype=torch.float64)
    edge(images(), weights)
    edge.candidate(0)[2].weight = nn.Parameter(torch.randn(5, 5, 1, 1, dtype=torch.float64))
    edge.candidate(0)[3].running_mean = torch.randn(5, dtype=torch.float64)
    assert_same(edge)
    edge.float().double()  # new tensors for the buffers, the same parameters
    assert_same(edge)
    assert_same(edge.eval())
    values = {name: 2 * value for name, value in edge.named_parameters()}
    got = torch.func.functional_call(edge, values, (images(), weights))
    twin = copy.deepcopy(edge)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
        with _ext.use("reference"):
            torch.testing.assert_close(got, twin(images(), weights), **FLOAT64)
    assert len(fused_nodes) == 1 + 2 + 2 + 2 + 1


def test_copies_are_of_their_own(fused_nodes):
    edge = randomise(MixedOp([nn.Sequential(*stage()), nn.MaxPool2d(3, 1, 1)]).double())
    weights = torch.ones(2, dtype=torch.float64)
    edge(images(), weights)
    file = io.BytesIO()
    torch.save(edge, file)
    file.seek(0)
    for twin in (copy.deepcopy(edge), torch.load(file, weights_only=False)):
        before = twin(images(), weights)
        with torch.no_grad():
            for parameter in edge.parameters():
                parameter.add_(1)
        torch.testing.assert_close(twin(images(), weights), before, rtol=0, atol=0)
        assert_same(twin)
    assert set(fused_nodes) == {2}


def test_one_edge_twice_in_a_node_counts_twice(fused_nodes):
    edge = randomise(MixedOp([nn.Sequential(*stage())]).double())
    twin = copy.deepcopy(edge)
    gate = GateOutput(torch.ones(2, 1, dtype=torch.float64))
    inputs = [images(0), images(1)]
    got = mix_edges([edge, edge], inputs, gate)
    with _ext.use("reference"):
        torch.testing.assert_close(got, mix_edges([twin, twin], inputs, gate), **FLOAT64)
    torch.testing.assert_close(dict(edge.state_dict()), dict(twin.state_dict()), **FLOAT64)
    assert fused_nodes == [1]


def test_drop_block_at_work_runs_as_a_module(fused_nodes):
    edge = MixedOp([SkipConnect(), nn.MaxPool2d(3, 1, 1)])
    blocks = DropBlocks(edge)
    x, weights = images(dtype=torch.float32), torch.ones(2)
    whole = edge(x, weights)
    with blocks.active(rate=0.5, block=3, seed=torch.tensor([0, 0]), path=0):
        dropped = edge(x, weights)
        with _ext.use("reference"):
            torch.testing.assert_close(edge(x, weights), dropped)
        assert not torch.equal(dropped, whole)
        torch.testing.assert_close(edge.eval()(x, weights), whole)
    assert fused_nodes == [2, 1, 2]


class TestWeightsOfZero:
    """Not computed where nobody can tell."""

    def edge(self, **options):
        modules = [nn.Sequential(*stage(**options)), nn.MaxPool2d(3, 1, 1), nn.Identity()]
        return MixedOp(modules).double()

    def weights(self, *values):
        return torch.tensor(values, dtype=torch.float64)

    def test_without_gradients(self, fused_nodes):
        edge = self.edge(track_running_stats=False)
        weights = self.weights(0, 2, 0)
        with torch.no_grad():
            got = edge(images(), weights)
            assert fused_nodes == [1]
            torch.testing.assert_close(got, 2 * edge.candidate(1)(images()), **FLOAT64)
            assert not edge(images(), 0 * weights).any()
        assert fused_nodes == [1, 1]

    def test_statistics_move_all_the_same(self, fused_nodes):
        edge = self.edge()
        with torch.no_grad():
            edge(images(), self.weights(0, 2, 0))
            assert fused_nodes == [2]
            assert edge.candidate(0)[3].num_batches_tracked == 1
            edge.eval()(images(), self.weights(0, 2, 0))
        assert fused_nodes == [2, 1]

    def test_parameters_get_their_zeros(self, fused_nodes):
        """A gradient of zero is not none: momentum and decay go on."""
        edge = self.edge(track_running_stats=False)
        edge(images(), self.weights(0, 2, 0)).sum().backward()
        assert fused_nodes == [2]
        assert all(p.grad is not None and not p.grad.any() for p in edge.parameters())

    def test_weights_get_their_gradients(self, fused_nodes):
        assert_same(self.edge(), steps=1)
        weights = self.weights(0, 2, 0).requires_grad_()
        edge = self.edge()
        edge(images(), weights).sum().backward()
        assert fused_nodes == [3, 3] and weights.grad.all()


def test_plain_modules_run_beside(fused_nodes):
    modules = known_candidates(1)
    modules["tanh"] = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Tanh())
    modules["unknown"] = UNKNOWN["depthwise bias"]()
    edge = randomise(MixedOp(modules).double())
    assert_same(edge)
    assert fused_nodes == [len(modules) - 2] * 2
    x, weights = images(), torch.ones(len(modules), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(edge(x, weights), edge(x, weights), rtol=0, atol=0)


def test_shapes_that_differ_are_named_beside_fused_candidates(fused_nodes):
    for candidates in (
        {"skip": nn.Identity(), "wide": nn.Conv2d(CHANNELS, 4, 1)},
        {"skip": nn.Identity(), "wide": nn.Sequential(*stage(c_out=4))},
    ):
        with pytest.raises(ValueError, match=r"'wide' .* must give \[3, 5, 8, 6\] like 'skip'"):
            MixedOp(candidates).double()(images(), torch.ones(2, dtype=torch.float64))

"""Models that we did not write: the same numbers, the same objects, and what is left alone."""

import copy
import io
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyfast_nas as fnas
from pyfast_nas import _ext
from tests.models import darts_style, nas_bench_201_style, pc_darts_style

FLOAT64 = {"rtol": 1e-7, "atol": 1e-9}  # a whole network of batch norms over few values

MODELS = {
    "darts": lambda: darts_style.Searched(),
    "darts, affine": lambda: darts_style.Searched(wide=4, steps=3, affine=True, momentum=0.3),
    "darts, cumulative": lambda: darts_style.Searched(wide=5, depth=1, momentum=None),
    "pc-darts": lambda: pc_darts_style.ShareNet(),
    "pc-darts, halves, strided": lambda: pc_darts_style.ShareNet(wide=12, step=2, share=2),
    "pc-darts, affine": lambda: pc_darts_style.ShareNet(wide=8, affine=True),
    "nas-bench-201": lambda: nas_bench_201_style.Bench(),
    "nas-bench-201, affine": lambda: nas_bench_201_style.Bench(wide=6, cells=2, affine=True),
}
CURVES = (
    pytest.param("darts", marks=pytest.mark.long),  # test_darts_cells has one of such cells
    "pc-darts, halves, strided",
    "nas-bench-201",
)


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors of a few hundred numbers: a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().double()


def batch(step=0, dtype=torch.float64):
    """Images whose class is their brightest corner."""
    generator = torch.Generator().manual_seed(step % 4)
    labels = torch.randint(4, (12,), generator=generator)
    images = torch.randn(12, 3, 8, 8, generator=generator, dtype=torch.float64)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[:, row : row + 4, column : column + 4] += 2
    return images.to(dtype), labels


def learn(model, steps, dtype=torch.float64, rate=0.02):
    """Train weights and tables together; the loss of every step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=3e-4)
    losses = []
    for step in range(steps):
        images, labels = batch(step, dtype)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def test_same_outputs_gradients_and_statistics(model, fused_nodes):
    twin = copy.deepcopy(model)
    report = fnas.accelerate(model)
    assert report.replaced and not report.left_alone
    assert list(model.state_dict()) == list(twin.state_dict())
    checked = len(fused_nodes)
    for step, training in enumerate((True, True, False, True)):
        images, labels = batch(step)
        results = []
        for net in (model.train(training), twin.train(training)):
            y = net(images)
            gradients = torch.autograd.grad(
                F.cross_entropy(y, labels), list(net.parameters()), allow_unused=True
            )
            results.append((y.detach(), gradients))
        torch.testing.assert_close(*results, **FLOAT64)
        torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()), **FLOAT64)
        with torch.no_grad():
            torch.testing.assert_close(model(images), twin(images), **FLOAT64)
    assert len(fused_nodes) > checked


@pytest.mark.slow  # fifty steps of two networks
@pytest.mark.parametrize("name", CURVES)
def test_same_training_curve_for_fifty_steps(name):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    twin = copy.deepcopy(model)
    fnas.accelerate(model)
    got, want = learn(model, 50), learn(twin, 50)
    assert want[-10:].mean() < 0.8 * want[:10].mean(), "nothing was learnt"
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert {name for name, _ in model.named_parameters()} == set(dict(twin.named_parameters()))


@pytest.mark.slow  # fifty steps of three networks
@pytest.mark.parametrize("name", CURVES)
def test_single_precision_curve_stays_as_near_to_the_truth(name):
    """Both curves in float32 are roundings of the one in float64, and equally good ones.

    Sooner or later one value crosses a ReLU with its last bit, in either curve alike (a few of
    twenty-five seeds within fifty steps); from there the two part by more than rounding. So the
    first steps are held to rounding, and all of them to a small part of what is learnt.
    """
    torch.manual_seed(0)
    truth = MODELS[name]().double()
    plain = copy.deepcopy(truth).float()
    fast = copy.deepcopy(plain)
    assert fnas.accelerate(fast).replaced
    want = learn(truth, 50)
    errors = [(learn(net, 50, torch.float32) - want).abs() for net in (fast, plain)]
    assert errors[0][:5].max() <= 4 * errors[1][:5].max() + 1e-6
    assert errors[0].max() < 0.05 * (want[:10].mean() - want[-10:].mean()).abs()


def edge(**norms):
    torch.manual_seed(0)
    return darts_style.Blend(5, 1, **norms).double()


def weights(*values):
    return torch.tensor(values or [0.3, -1, 2, 0.5, 1, 0.1, 1.5, 0.7], dtype=torch.float64)


def features():
    return torch.randn(2, 5, 8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Scaled(darts_style.Blend):
    def forward(self, feature, mixture):
        return 0.5 * super().forward(feature, mixture)


class Softened(darts_style.Blend):
    def forward(self, feature, mixture):
        return super().forward(feature, mixture.softmax(0))


class Shortened(darts_style.Blend):
    def forward(self, feature, mixture):
        return sum(w * op(feature) for w, op in zip(mixture[:-1], self.choices, strict=False))


class Residual(darts_style.Blend):
    def forward(self, feature, mixture):
        return feature + super().forward(feature, mixture)


class OtherInEvaluation(darts_style.Blend):
    def forward(self, feature, mixture):
        y = super().forward(feature, mixture)
        return y if self.training else y.relu()


class OtherWithoutGradient(darts_style.Blend):
    """The same value; the weights get no gradient."""

    def forward(self, feature, mixture):
        return super().forward(feature, mixture.detach()) + 0 * mixture.sum()


class Skipping(darts_style.Blend):
    """Candidates weighted by zero do not run, so that their running statistics stay."""

    def forward(self, feature, mixture):
        pairs = zip(mixture, self.choices, strict=True)
        return sum(w * op(feature) for w, op in pairs if w != 0)


class Twice(darts_style.Blend):
    """The same value; running statistics move twice."""

    def forward(self, feature, mixture):
        super().forward(feature, mixture)
        return super().forward(feature, mixture)


class Random(darts_style.Blend):
    def forward(self, feature, mixture):
        return super().forward(F.dropout(feature, 0.5, self.training), mixture)


class InPlace(darts_style.Blend):
    def forward(self, feature, mixture):
        return super().forward(feature.add_(0), mixture)


class Broken(darts_style.Blend):
    def forward(self, feature, mixture):
        raise KeyError("not here")


LIARS = {
    Scaled: "the output differs in training mode",
    Softened: "the output differs in training mode",
    Shortened: "the output differs in training mode",
    Residual: "the output differs in training mode",
    OtherInEvaluation: "the output differs in evaluation mode",
    OtherWithoutGradient: "the gradient of the weights differs in training mode",
    Skipping: "differs in training mode",
    Twice: "the buffer choices.1.1.running_mean differs in training mode",
    Random: "the output differs in training mode",
    InPlace: "the input is changed in place",
    Broken: "its forward fails .* KeyError: 'not here'",
}


@pytest.mark.parametrize("kind", LIARS, ids=lambda kind: kind.__name__)
def test_a_forward_that_computes_something_else_is_left_alone_and_named(kind):
    torch.manual_seed(0)
    model = nn.ModuleDict({"good": edge(), "bad": kind(5, 1)})
    report = fnas.accelerate(model)
    assert list(report.replaced) == ["good"] and list(report.left_alone) == ["bad"]
    assert re.search(LIARS[kind], report.left_alone["bad"]), report.left_alone
    assert type(model["bad"]) is kind and type(model["good"]) is not darts_style.Blend
    assert "bad" in str(report) and "left alone 1 module" in str(report)


class Sampled(nn.Module):
    """As GDAS has it: an index says which candidate runs."""

    def __init__(self):
        super().__init__()
        self.choices = nn.ModuleList(darts_style.menu(5, 1))

    def forward(self, feature, mixture, index):
        return mixture[index] * self.choices[index](feature)


def test_a_forward_with_another_signature_is_named():
    report = fnas.accelerate(nn.ModuleDict({"edge": Sampled()}))
    assert report.left_alone == {
        "edge": "its forward takes (feature, mixture, index), not (x, weights)"
    }


def test_a_forward_set_on_the_instance_is_named():
    module = edge()
    module.forward = lambda feature, mixture: feature
    report = fnas.accelerate(module)
    assert report.left_alone == {"the model": "its forward was set on the instance"}


class Louder(darts_style.Block):
    """A candidate that does more than its layers."""

    def forward(self, feature):
        return 2 * self.net(feature)


class Blur(nn.Module):
    """A leaf that is neither the identity nor zero."""

    def forward(self, feature):
        return feature.roll(1, -1)


def test_candidates_that_are_not_recognised_run_beside_the_others(fused_nodes):
    module = edge()
    module.choices[6] = Louder(*darts_style.half_separable(5, 3, 1, 2, False, 0.1))
    module.choices[3] = Blur()
    module.choices[7] = nn.Sequential(nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Tanh())
    module.double()
    twin = copy.deepcopy(module)
    report = fnas.accelerate(nn.ModuleDict({"edge": module}))
    assert report.replaced == {"edge": "5 of 8 candidates"}
    assert report.plain == {
        "edge.choices.3": "not recognised",
        "edge.choices.6": "the output differs in training mode from its layers in order",
        "edge.choices.7": "not recognised",
    }
    fused_nodes.clear()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            got, want = (net(features(), weights()) for net in (module, twin))
            torch.testing.assert_close(got, want, **FLOAT64)
    assert fused_nodes == [4, 4]  # and zero, which nobody runs
    torch.testing.assert_close(dict(module.state_dict()), dict(twin.state_dict()), **FLOAT64)


def test_candidates_that_work_in_place_are_left_alone():
    """Their siblings, and other edges, read what they change."""
    module = edge()
    module.choices[4].net[0] = nn.ReLU(inplace=True)
    report = fnas.accelerate(module)
    assert "in place" in report.left_alone["the model"] and not report.replaced


def test_parameters_stay_the_same_objects_and_restore_undoes_it():
    module = edge()
    before = dict(module.named_parameters())
    text, keys = repr(module), list(module.state_dict())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    fnas.accelerate(module)
    assert isinstance(module, darts_style.Blend) and repr(module) == text
    assert all(before[name] is p for name, p in module.named_parameters())
    assert list(module.state_dict()) == keys
    start = module.choices[4].net[1].weight.clone()
    module(features(), weights()).sum().backward()
    optimizer.step()
    assert not torch.equal(module.choices[4].net[1].weight, start)
    attributes = set(vars(edge()))
    assert fnas.restore(module) == 1 and fnas.restore(module) == 0
    assert type(module) is darts_style.Blend and set(vars(module)) == attributes
    assert fnas.accelerate(module).replaced


def test_accelerating_twice_changes_nothing():
    module = edge()
    fnas.accelerate(module)
    kind = type(module)
    report = fnas.accelerate(module)
    assert type(module) is kind and list(report.replaced) == [""]
    fnas.restore(module)
    assert type(module) is darts_style.Blend


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, saved], ids=["deepcopy", "torch.save"])
def test_copies_are_accelerated_and_of_their_own(copied, fused_nodes):
    module = edge()
    fnas.accelerate(module)
    module(features(), weights())
    twin = copied(module)
    assert type(twin) is type(module)
    fused_nodes.clear()
    want = twin(features(), weights())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(features(), weights()), want)
    assert fused_nodes == [7, 7]
    assert fnas.restore(twin) == 1 and type(module) is not darts_style.Blend
    torch.testing.assert_close(twin(features(), weights()), want, **FLOAT64)


def test_state_dicts_go_both_ways():
    module, other = edge(), darts_style.Blend(5, 1).double()
    fnas.accelerate(module)
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(
        module(features(), weights()), other(features(), weights()), **FLOAT64
    )
    module.load_state_dict(other.state_dict())


def test_hooks_of_the_module_and_of_its_candidates(fused_nodes):
    module = edge()
    calls = []
    module.register_forward_hook(lambda m, inputs, y: calls.append("edge"))
    module.choices[4].net[1].register_forward_hook(lambda m, inputs, y: calls.append("conv"))
    module.choices[3].register_full_backward_hook(lambda m, inputs, y: calls.append("back"))
    fnas.accelerate(module)
    assert not calls, "hooks see nothing of the comparison"
    fused_nodes.clear()
    twin = copy.deepcopy(module)
    fnas.restore(twin)
    x = features().requires_grad_()
    y = module(x, weights())
    y.sum().backward()
    assert sorted(calls) == ["back", "conv", "edge"] and fused_nodes == [5]
    torch.testing.assert_close(y, twin(features(), weights()), **FLOAT64)


def test_modes_and_dtypes_follow_the_model(fused_nodes):
    model = nn.ModuleDict({"edge": edge(affine=True)})
    twin = copy.deepcopy(model)
    fnas.accelerate(model)
    fused_nodes.clear()
    for change in (
        lambda net: net.eval(),
        lambda net: net.float(),
        lambda net: net.double().train(),
        lambda net: net.requires_grad_(False),
    ):
        for net in (model, twin):
            change(net)
        dtype = model["edge"].choices[4].net[1].weight.dtype
        x, w = features().to(dtype), weights().to(dtype)
        tolerance = FLOAT64 if dtype is torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(model["edge"](x, w), twin["edge"](x, w), **tolerance)
    assert fused_nodes == [7] * 4


def test_what_was_not_compared_goes_to_the_forward_of_the_model(fused_nodes):
    module = edge()
    twin = copy.deepcopy(module)
    fnas.accelerate(module)
    fused_nodes.clear()
    x, w = features(), weights()
    for call in (
        lambda net: net(feature=x, mixture=w),
        lambda net: net(x, w.tolist()),
        lambda net: net(x, w[:5]),
        lambda net: net(x, w.float()),
        lambda net: net.half()(x.half(), w.half()),
        lambda net: net.to(torch.bfloat16)(x.bfloat16(), w.bfloat16()),
    ):
        torch.testing.assert_close(call(module), call(twin), rtol=0, atol=0)
    with pytest.raises(TypeError, match="mixture"):
        module(x)
    assert not fused_nodes


def test_settings_that_change_are_seen(fused_nodes):
    module = pc_darts_style.ShareBlend(8, 1, share=4).double()
    twin = copy.deepcopy(module)
    fnas.accelerate(module)
    x = torch.randn(2, 8, 8, 8, dtype=torch.float64)
    module(x, weights())
    fused_nodes.clear()
    for net in (module, twin):
        net.share = 2
        net.choices = nn.ModuleList(darts_style.menu(4, 1)).double()
    twin.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(x, weights()), twin(x, weights()), rtol=0, atol=0)
    assert not fused_nodes


class Dropping(darts_style.Block):
    """A candidate whose setting another part of a program moves."""

    rate = 0.0

    def __init__(self, *layers):
        super().__init__(*layers)
        self.rate = 0.0

    def forward(self, feature):
        return F.dropout(self.net(feature), self.rate, self.training)


def test_a_setting_of_a_candidate_that_changes_is_seen(fused_nodes):
    module = edge()
    module.choices[4] = Dropping(*darts_style.half_separable(5, 3, 1, 1, False, 0.1)).double()
    assert fnas.accelerate(module).replaced[""] == "8 of 8 candidates"
    fused_nodes.clear()
    module(features(), weights())
    module.choices[4].rate = 0.5
    copied = copy.deepcopy(module)
    for net in (module, copied):
        first, second = net(features(), weights()), net(features(), weights())
        assert not torch.equal(first, second)
    assert fused_nodes == [7, 6, 6, 6, 6]


@pytest.mark.parametrize("copied", [False, True])
def test_a_candidate_that_is_replaced_before_the_first_call_is_seen(copied, fused_nodes):
    """What was seen of the identity that stood there says nothing of it."""
    module = edge()
    twin = copy.deepcopy(module)
    assert fnas.accelerate(module).replaced
    if copied:
        module = copy.deepcopy(module)
    fused_nodes.clear()
    for net in (module, twin):
        net.choices[3] = nn.Tanh()
    torch.testing.assert_close(
        module(features(), weights()), twin(features(), weights()), **FLOAT64
    )
    assert fused_nodes == [6]


def test_without_kernels_the_model_runs_as_it_is(fused_nodes):
    module = edge()
    twin = copy.deepcopy(module)
    with _ext.use("reference"):
        fnas.accelerate(module)
        fused_nodes.clear()
        got, want = module(features(), weights()), twin(features(), weights())
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert not fused_nodes


def test_nothing_of_the_comparison_is_left_behind():
    model = MODELS["nas-bench-201"]()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    fnas.accelerate(model.eval())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    "surrounding", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")]
)
def test_it_does_not_matter_in_what_mode_it_is_called(surrounding):
    model = MODELS["darts"]()
    with surrounding():
        report = fnas.accelerate(model)
    assert len(report.replaced) == 15 and not report.left_alone


def test_default_dtype_and_device_do_not_matter():
    model = MODELS["darts"]()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert len(fnas.accelerate(model).replaced) == 15
    finally:
        torch.set_default_dtype(torch.float32)


def test_autocast_is_the_model_s_own():
    model = MODELS["darts"]()
    twin = copy.deepcopy(model)
    fnas.accelerate(model)
    images, labels = batch(dtype=torch.float32)
    results = []
    for net in (model, twin):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(net(images), labels)
        results.append(torch.autograd.grad(loss, list(net.parameters())))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.slow  # the compiler
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: darts_style.Blend(24, 1), (8,)),
        (lambda: pc_darts_style.ShareBlend(24, 2), (8,)),
        (lambda: nas_bench_201_style.DenseCell(24, nodes=3), (3, 5)),
    ],
    ids=["darts", "pc-darts", "nas-bench-201"],
)
def test_compiles_with_the_surrounding_model(make, shape):
    torch.manual_seed(0)
    module = make().double()
    fnas.accelerate(module)
    twin = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 24, 8, 8, dtype=torch.float64)
    w = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    results = []
    for net in (compiled, twin):
        y = net(x, w)
        results.append((y, *torch.autograd.grad(y.square().sum(), [w, *net.parameters()])))
    torch.testing.assert_close(*results, **FLOAT64)


# Of plain modules, where no kernels are compiled: a word of torch on speed.
@pytest.mark.filterwarnings("ignore:Grad strides do not match bucket view strides")
def test_under_distributed_data_parallel(tmp_path, fused_nodes):
    torch.manual_seed(0)
    model = darts_style.Searched(depth=1).double()
    twin = copy.deepcopy(model)
    fnas.accelerate(model)
    fused_nodes.clear()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        torch.testing.assert_close(learn(wrapped, 3), learn(twin, 3), **FLOAT64)
        del wrapped
    finally:
        torch.distributed.destroy_process_group()
    assert fused_nodes


def test_ours_need_no_replacing():
    space = fnas.spaces.DARTS(channels=4, cells=1, nodes=2)
    report = fnas.accelerate(space.supernet())
    assert not report.replaced and not report.left_alone
    assert report.notes == ("5 pyfast_nas MixedOps run in fused nodes anyway",)


def test_a_model_without_candidates_says_so():
    report = fnas.accelerate(nn.Sequential(nn.Linear(2, 2)))
    assert str(report) == (
        "replaced 0 modules\nnote: no module has a list of candidates and a forward(x, weights)"
    )


@pytest.mark.parametrize("function", [fnas.accelerate, fnas.restore])
def test_what_is_no_module_is_refused(function):
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        function([nn.Identity()])


class _Reduction(nn.Module):
    """A factorised reduction, or with ``step`` 0 one whose halves read the same pixels."""

    def __init__(self, channels: int, step: int, rectify: str = "layer"):
        super().__init__()
        self.step, self.rectify = step, rectify
        if rectify == "layer":
            self.relu = nn.ReLU(inplace=False)
        self.conv_1 = nn.Conv2d(channels, channels // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(channels, channels // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x):
        x = _rectified(self, x)
        shifted = x[:, :, self.step :, self.step :]
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(shifted)], 1))


class _Separable(nn.Module):
    def __init__(self, channels: int, step: int, rectify: str = "layer"):
        super().__init__()
        self.rectify = rectify
        if rectify == "layer":
            self.relu = nn.ReLU()
        self.depthwise = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.bn(self.pointwise(self.depthwise(_rectified(self, x))))


def _rectified(module, x):
    if module.rectify == "layer":
        return module.relu(x)
    return F.relu(x) if module.rectify == "function" else x


class _ReducingEdge(nn.Module):
    def __init__(self, candidate: nn.Module):
        super().__init__()
        pool = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(8))
        self.parts = nn.ModuleList([candidate, pool])

    def forward(self, x, weights):
        return sum(weight * part(x) for weight, part in zip(weights, self.parts, strict=True))


@pytest.mark.parametrize("kind", [_Reduction, _Separable])
@pytest.mark.parametrize("rectify", ["layer", "function", "nothing"])
@pytest.mark.parametrize("step", [1, 0])
def test_a_forward_of_its_own_is_taken_only_for_what_it_does(kind, rectify, step):
    """Where the halves differ by no pixel, or nothing is rectified, the module runs as it is."""
    edge = _ReducingEdge(kind(8, step, rectify)).double()
    twin = copy.deepcopy(edge)
    report = fnas.accelerate(edge)
    assert list(report.replaced) == [""]
    is_known = rectify != "nothing" and (step == 1 or kind is _Separable)
    assert list(report.plain) == ([] if is_known else ["parts.0"])
    for _ in range(2):
        x = torch.randn(3, 8, 6, 6, dtype=torch.float64)
        weights = torch.rand(2, dtype=torch.float64)
        torch.testing.assert_close(edge(x, weights), twin(x, weights), **FLOAT64)

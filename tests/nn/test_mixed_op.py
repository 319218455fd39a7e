"""MixedOp as a drop-in: values and gradients, what runs, memory, and what it refuses."""

import copy
import weakref

import pytest
import torch
from torch import nn
from torch.func import vmap

from pyfast_nas.errors import SearchSpaceError
from pyfast_nas.nn import MixedOp
from pyfast_nas.nn.gates import GateOutput
from pyfast_nas.nn.mixed_op import mix_edges
from pyfast_nas.nn.primitives import Zero

FLOAT64 = {"rtol": 1e-12, "atol": 1e-12}  # order of summation only
FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}
HALF = {"rtol": 1e-2, "atol": 1e-2}  # candidates rounded to eight bits


def conv(dtype=torch.float64):
    return nn.Conv2d(3, 3, 3, padding=1, dtype=dtype)


def edge(dtype=torch.float64):
    torch.manual_seed(0)
    return MixedOp({"none": Zero(), "skip": nn.Identity(), "a": conv(dtype), "b": conv(dtype)})


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 5, 5, generator=generator, dtype=dtype, requires_grad=True)
    weights = torch.randn(4, generator=generator, dtype=dtype, requires_grad=True)
    return x, weights


def naive(mixed, x, weights, active=None):
    active = range(mixed.num_ops) if active is None else active
    return sum(w * mixed.candidate(k)(x) for w, k in zip(weights, active, strict=True))


def test_equals_the_formula():
    mixed = edge()
    x, weights = batch()
    inputs = (x, weights, *mixed.parameters())
    got, want = mixed(x, weights), naive(mixed, x, weights)
    torch.testing.assert_close(got, want, **FLOAT64)
    factor = torch.randn_like(want)
    torch.testing.assert_close(
        torch.autograd.grad((got * factor).sum(), inputs),
        torch.autograd.grad((want * factor).sum(), inputs),
        **FLOAT64,
    )


def test_second_derivatives():
    mixed = edge()
    x, weights = batch()
    fixed = [parameter.detach() for parameter in mixed.parameters()]
    assert fixed
    torch.autograd.gradgradcheck(mixed, (x, weights))


def test_streams_to_the_same_value():
    mixed = edge()
    x, weights = batch()
    with torch.no_grad():
        torch.testing.assert_close(mixed(x, weights), naive(mixed, x, weights), **FLOAT64)
    with torch.inference_mode():
        torch.testing.assert_close(mixed(x, weights), naive(mixed, x, weights), **FLOAT64)


def count_calls(mixed):
    calls = dict.fromkeys(mixed.names, 0)

    def counter(name):
        def hook(*_):
            calls[name] += 1

        return hook

    for name in mixed.names:
        mixed.candidates[name].register_forward_hook(counter(name))
    return calls


@pytest.mark.parametrize("grad", [True, False])
def test_only_active_candidates_run(grad):
    mixed = edge()
    calls = count_calls(mixed)
    x, weights = batch()
    with torch.set_grad_enabled(grad):
        mixed(x, weights[:2], active=[3, 1])
    assert calls == {"none": 0, "skip": 1, "a": 0, "b": 1}


def test_none_is_not_run_and_has_a_zero_gradient():
    mixed = edge()
    calls = count_calls(mixed)
    x, weights = batch()
    mixed(x, weights).sum().backward()
    assert calls == {"none": 0, "skip": 1, "a": 1, "b": 1}
    assert weights.grad[0] == 0 and weights.grad[1:].all()


def test_none_alone_gives_zeros():
    mixed = edge()
    x, weights = batch()
    with torch.no_grad():
        x[0, 0, 0, 0] = float("nan")
    assert not mixed(x, weights[:1], active=[0]).any()


def test_weights_of_the_active_or_of_all():
    mixed = edge()
    x, weights = batch()
    active = [2, 1]
    want = naive(mixed, x, weights[active], active)
    torch.testing.assert_close(mixed(x, weights, active), want, **FLOAT64)
    torch.testing.assert_close(mixed(x, weights[active], active), want, **FLOAT64)
    mixed(x, weights[active], active).sum().backward()
    assert mixed.candidates["b"].weight.grad is None
    assert mixed.candidates["a"].weight.grad is not None


def test_names_and_state():
    named = edge()
    assert named.names == ("none", "skip", "a", "b") and named.num_ops == 4
    assert set(named.state_dict()) == {
        f"candidates.{name}.{kind}" for name in "ab" for kind in ("weight", "bias")
    }
    listed = MixedOp([nn.Identity(), conv()])
    assert listed.names == ("0", "1")
    assert set(listed.state_dict()) == {"candidates.1.weight", "candidates.1.bias"}
    x, weights = batch()
    twin = copy.deepcopy(named)
    assert torch.equal(twin(x, weights), named(x, weights))
    assert twin.candidate(2) is not named.candidate(2)


def live_outputs(num_ops, grad):
    """Most candidate outputs that were alive at once."""
    mixed = MixedOp([conv() for _ in range(num_ops)])
    alive: list[weakref.ref] = []
    most = 0

    def hook(module, inputs, output):
        nonlocal most
        alive.append(weakref.ref(output))
        most = max(most, sum(ref() is not None for ref in alive))

    for module in mixed.candidates:
        module.register_forward_hook(hook)
    with torch.set_grad_enabled(grad):
        mixed(batch()[0], torch.ones(num_ops, dtype=torch.float64))
    assert len(alive) == num_ops
    return most


def test_streaming_keeps_one_output_alive():
    assert live_outputs(2, grad=False) == live_outputs(8, grad=False) == 1
    # Negative control: with gradients all of them are kept, and the count sees it.
    assert live_outputs(8, grad=True) == 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_candidates_with_float_weights(dtype):
    mixed = edge(torch.float32)
    x, weights = batch(torch.float32)
    want = mixed(x, weights)
    want_grad = torch.autograd.grad(want.sum(), weights)
    mixed, half = mixed.to(dtype), x.detach().to(dtype)
    got = mixed(half, weights)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, **HALF)
    grad = torch.autograd.grad(got.sum(), weights)
    assert grad[0].dtype == torch.float32
    torch.testing.assert_close(grad, want_grad, rtol=1e-2, atol=0.2)  # sums of 150 terms
    with torch.no_grad():
        streamed = mixed(half, weights)
    assert streamed.dtype == torch.float32
    torch.testing.assert_close(streamed, got, **FLOAT32)


def test_autocast():
    mixed = edge(torch.float32)
    x, weights = batch(torch.float32)
    want = mixed(x, weights)
    with torch.autocast("cpu", torch.bfloat16):
        got = mixed(x, weights)  # the skip stays float32, the convolutions are bfloat16
        with torch.no_grad():
            streamed = mixed(x, weights)
    assert got.dtype == streamed.dtype == torch.float32
    torch.testing.assert_close(got, want, **HALF)
    torch.testing.assert_close(streamed, want, **HALF)
    got.sum().backward()
    assert weights.grad.dtype == torch.float32


def test_bfloat16_streaming_accumulates_wide():
    """256 + 1 is 256 in bfloat16; a sum of many small terms must still arrive."""
    mixed = MixedOp([nn.Identity() for _ in range(257)])
    weights = torch.ones(257, dtype=torch.bfloat16)
    weights[0] = 256
    with torch.no_grad():
        got = mixed(torch.ones(2, dtype=torch.bfloat16), weights)
    assert got.dtype == torch.bfloat16
    assert got.tolist() == [512, 512]


def test_channels_last_stays():
    mixed = edge(torch.float32)
    x, weights = batch(torch.float32)
    x = x.detach().to(memory_format=torch.channels_last)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            y = mixed(x, weights)
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_compiles_whole():
    mixed = edge(torch.float32)
    x, weights = batch(torch.float32)
    compiled = torch.compile(mixed, fullgraph=True, backend="aot_eager")
    want, got = mixed(x, weights), compiled(x, weights)
    torch.testing.assert_close(got, want, **FLOAT32)
    torch.testing.assert_close(
        torch.autograd.grad(got.sum(), (x, weights)),
        torch.autograd.grad(want.sum(), (x, weights)),
        **FLOAT32,
    )


def test_vmap_over_inputs_and_weights():
    mixed = MixedOp([nn.Identity(), nn.Linear(3, 3, dtype=torch.float64)])
    x = torch.randn(4, 3, dtype=torch.float64)
    weights = torch.randn(5, 2, dtype=torch.float64)
    want = torch.stack([mixed(x, w) for w in weights])
    torch.testing.assert_close(vmap(mixed, in_dims=(None, 0))(x, weights), want, **FLOAT64)
    rows = vmap(mixed, in_dims=(0, None))(x, weights[0])
    torch.testing.assert_close(rows, want[0], **FLOAT64)


def test_edges_of_one_node_sum():
    torch.manual_seed(0)
    edges = [edge(), MixedOp({"skip": nn.Identity(), "a": conv(), "none": Zero(), "b": conv()})]
    inputs = [batch()[0], batch()[0] * 2]
    weights = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    want = naive(edges[0], inputs[0], weights[1]) + naive(edges[1], inputs[1], weights[2])
    got = mix_edges(edges, inputs, GateOutput(weights), first_row=1)
    torch.testing.assert_close(got, want, **FLOAT64)
    (grad,) = torch.autograd.grad(got.sum(), weights)
    assert not grad[0].any() and grad[1, 0] == 0 and grad[2, 2] == 0


@pytest.mark.parametrize("active", [None, ((1,), (1,), (3,)), ((2,), (2,), (2,))])
def test_a_shift_is_added_to_every_element_of_its_row(active):
    """Also to a node that nothing but `none` reaches; its gradient counts the elements."""
    edges = [
        MixedOp({"skip": nn.Identity(), "a": conv(), "none": Zero(), "b": conv()}) for _ in "ab"
    ]
    inputs = [batch()[0], batch()[0] * 2]
    weights = torch.randn(3, 4 if active is None else 1, dtype=torch.float64)
    shift = torch.tensor([5.0, 0.25, -2.0], dtype=torch.float64, requires_grad=True)
    want = mix_edges(edges, inputs, GateOutput(weights, active), first_row=1) - 1.75
    got = mix_edges(edges, inputs, GateOutput(weights, active, shift=shift), first_row=1)
    torch.testing.assert_close(got, want, **FLOAT64)
    (grad,) = torch.autograd.grad(got.sum(), shift)
    assert grad.tolist() == [0, got.numel(), got.numel()]


class InPlace(nn.Module):
    def forward(self, x):
        return x.mul_(2)


class Alphas(nn.Module):
    def __init__(self):
        super().__init__()
        self.alphas = nn.Parameter(torch.zeros(2))


def shared():
    module = conv()
    return {"a": nn.Sequential(nn.ReLU(), module), "b": nn.Sequential(module)}


@pytest.mark.parametrize(
    ("candidates", "error", "words"),
    [
        ({}, SearchSpaceError, "must not be empty"),
        ([], SearchSpaceError, "must not be empty"),
        ({"a": nn.Identity(), "b": torch.relu}, TypeError, "'b' must be a torch.nn.Module"),
        (shared(), SearchSpaceError, "Conv2d in both 'a' and 'b'"),
        (
            {"a": nn.Sequential(nn.Sequential(nn.ReLU(inplace=True)), conv())},
            SearchSpaceError,
            "'a' .* in-place ReLU first",
        ),
        ({"a": Alphas()}, SearchSpaceError, "'a' .* architecture parameters, got 'alphas'"),
        ({"none": Zero()}, SearchSpaceError, "only 'none'"),
    ],
)
def test_construction_refusals(candidates, error, words):
    with pytest.raises(error, match=words):
        MixedOp(candidates)


@pytest.mark.parametrize("grad", [True, False])
def test_shape_mismatch_names_both(grad):
    mixed = MixedOp({"skip": nn.Identity(), "wide": nn.Conv2d(3, 4, 1)})
    words = r"'wide' .* must give \[2, 3, 5, 5\] like 'skip' .* got \[2, 4, 5, 5\]"
    with torch.set_grad_enabled(grad), pytest.raises(SearchSpaceError, match=words):
        mixed(torch.ones(2, 3, 5, 5), torch.ones(2))


@pytest.mark.parametrize("grad", [True, False])
def test_a_change_of_the_input_is_caught(grad):
    mixed = MixedOp({"skip": nn.Identity(), "bad": InPlace()})
    with torch.set_grad_enabled(grad), pytest.raises(SearchSpaceError, match=r"'bad' .* in-place"):
        mixed(torch.ones(2, 3), torch.ones(2))


@pytest.mark.parametrize(
    ("weights", "active", "words"),
    [
        (torch.ones(3), None, r"shape \[4\] for 4 candidates, got \[3\]"),
        (torch.ones(1, 4), None, r"got \[1, 4\]"),
        (torch.ones(3), [0, 1], r"shape \[2\]"),
        (torch.ones(1), [4], "from 0 to 3, got"),
        (torch.ones(1), [-1], "from 0 to 3, got"),
        (torch.ones(0), [], "from 0 to 3, got"),
    ],
)
def test_call_refusals(weights, active, words):
    with pytest.raises(ValueError, match=words):
        edge(torch.float32)(torch.ones(1, 3, 5, 5), weights, active)

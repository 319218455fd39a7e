"""What the sampler refuses: one class and one message on every backend."""

import ast
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pyfast_nas import _ext, ops

SEED = torch.tensor([0, 1])
NAN, INF = float("nan"), float("inf")


def logits_with(value, row=2, column=1, columns=4):
    logits = torch.zeros(5, columns)
    logits[row, column] = value
    return logits


def mostly_masked(columns=4):
    logits = torch.zeros(5, columns)
    logits[3, 1:] = -INF
    return logits


# Seen from arguments alone, so refused under fake tensors too.
STRUCTURE = [
    ({"logits": [[0.0, 1.0]]}, TypeError, "logits must be a tensor, got list"),
    ({"logits": np.zeros((2, 2))}, TypeError, "logits must be a tensor, got ndarray"),
    ({"logits": None}, TypeError, "logits must be a tensor, got NoneType"),
    ({"logits": "x"}, TypeError, "logits must be a tensor, got str"),
    ({"logits": torch.zeros(2, 4, dtype=torch.int64)}, TypeError, "dtype float64.*torch.int64"),
    ({"logits": torch.zeros(2, 4, dtype=torch.bool)}, TypeError, "got torch.bool"),
    ({"logits": torch.zeros(2, 4, dtype=torch.complex64)}, TypeError, "got torch.complex64"),
    ({"logits": torch.zeros(2, 4).to(torch.float8_e5m2)}, TypeError, "got torch.float8_e5m2"),
    ({"logits": torch.zeros(4)}, ValueError, r"shape \[num_edges, num_ops\].*got \[4\]"),
    ({"logits": torch.zeros(2, 2, 2)}, ValueError, r"got \[2, 2, 2\]"),
    ({"logits": torch.zeros(3, 0)}, ValueError, r"at least one candidate.*got \[3, 0\]"),
    ({"logits": torch.zeros(1, 65537)}, ValueError, "num_ops must be at most 65536, got 65537"),
    ({"k": 0}, ValueError, "k must be between 1 and num_ops=4, got 0"),
    ({"k": -1}, ValueError, "k must be between 1 and num_ops=4, got -1"),
    ({"k": 5}, ValueError, "k must be between 1 and num_ops=4, got 5"),
    ({"k": 2.0}, TypeError, "k must be an integer, got float"),
    ({"k": True}, TypeError, "k must be an integer, got bool"),
    ({"tau": 0.0}, ValueError, r"tau \(the temperature\) must be positive and finite, got 0.0"),
    ({"tau": -1}, ValueError, r"temperature.*got -1.0"),
    ({"tau": NAN}, ValueError, "temperature.*got nan"),
    ({"tau": INF}, ValueError, "temperature.*got inf"),
    ({"tau": True}, TypeError, "temperature.*got bool"),
    ({"tau": torch.ones((), requires_grad=True)}, TypeError, "temperature.*got a tensor"),
    ({"relaxation": "sets"}, ValueError, "must be 'shared', 'conditional' or 'subset', got 'sets'"),
    ({"relaxation": "x" * 500}, ValueError, "relaxation must be"),
    ({"relaxation": None}, ValueError, "relaxation must be.*got None"),
    ({"seed": 3}, TypeError, r"seed must be an int64 tensor \[2\], got int"),
    ({"seed": SEED.float()}, TypeError, "seed must have dtype torch.int64, got torch.float32"),
    ({"seed": SEED[:1]}, ValueError, r"seed must have shape \[2\].*got \[1\]"),
    ({"noise": torch.zeros(5, 3)}, ValueError, r"noise must have shape \[5, 4\].*got \[5, 3\]"),
    ({"noise": torch.zeros(5, 4).long()}, TypeError, "noise must have dtype.*torch.int64"),
    ({"noise": [0.0]}, TypeError, "noise must be a tensor, got list"),
]
LAYOUTS = [
    ({"logits": torch.zeros(2, 4).to_sparse()}, NotImplementedError, "logits.*torch.sparse_coo"),
    ({"logits": torch.zeros(2, 4).to_mkldnn()}, NotImplementedError, "logits.*torch._mkldnn"),
    ({"logits": torch.zeros(2, 4, device="meta")}, NotImplementedError, "logits.*meta"),
    ({"noise": torch.zeros(5, 4, device="meta")}, (NotImplementedError, RuntimeError), "noise"),
    ({"seed": SEED.to("meta")}, (NotImplementedError, RuntimeError), "seed"),
]
VALUES = [
    ({"logits": logits_with(NAN)}, ValueError, "logits must hold no NaN.*row 2, column 1"),
    ({"logits": logits_with(INF)}, ValueError, r"logits must hold no \+inf.*row 2, column 1"),
    ({"logits": logits_with(NAN, columns=100)}, ValueError, "NaN.*row 2, column 1"),
    ({"logits": logits_with(NAN).double()}, ValueError, "NaN.*row 2, column 1"),
    ({"logits": logits_with(NAN).half()}, ValueError, "NaN.*row 2, column 1"),
    ({"logits": torch.full((5, 4), NAN)}, ValueError, "NaN.*row 0, column 0"),
    ({"logits": mostly_masked()}, ValueError, "at least k=2 candidates.*unmasked.*got 1 in row 3"),
    ({"logits": mostly_masked(80)}, ValueError, "unmasked.*got 1 in row 3"),
    ({"logits": mostly_masked(80), "k": 70}, ValueError, "k=70 candidates.*got 1 in row 3"),
    ({"logits": torch.full((5, 4), -INF)}, ValueError, "unmasked.*got 0 in row 0"),
    ({"noise": logits_with(NAN)}, ValueError, "noise must hold no NaN.*row 2, column 1"),
    ({"noise": logits_with(INF)}, ValueError, r"noise must hold no \+inf.*row 2"),
    (
        {"logits": torch.full((5, 4), 3e38), "noise": torch.full((5, 4), 3e38)},
        ValueError,
        r"logits \+ noise must hold no \+inf.*row 0",
    ),
]


def call(change):
    arguments = {"logits": torch.zeros(5, 4), "k": 2, "tau": 1.0, "seed": SEED, **change}
    return ops.gumbel_topk(arguments.pop("logits"), arguments.pop("k"), **arguments)


def refused(change, error, words):
    state = torch.get_rng_state()
    with pytest.raises(error, match=words) as caught:
        call(change)
    message = str(caught.value)
    assert message.startswith("gumbel_topk: ")
    assert len(message) < 400
    assert not re.search("0x[0-9a-f]{6}", message)
    assert torch.equal(state, torch.get_rng_state())
    return message


@pytest.mark.parametrize(("change", "error", "words"), STRUCTURE + LAYOUTS + VALUES)
def test_refusals(backend, change, error, words):
    refused(change, error, words)


@pytest.mark.parametrize(("change", "error", "words"), STRUCTURE + VALUES)
def test_refusals_where_a_gradient_is_wanted(backend, change, error, words):
    logits = change.get("logits", torch.zeros(5, 4))
    if isinstance(logits, torch.Tensor) and logits.is_floating_point():
        change = {**change, "logits": logits.clone().requires_grad_()}
    refused(change, error, words)


@pytest.mark.parametrize(("change", "error", "words"), STRUCTURE)
def test_refusals_under_fake_tensors(backend, change, error, words):
    message = refused(change, error, words)
    with FakeTensorMode() as mode:
        fakes = {"logits": torch.zeros(5, 4), "seed": SEED, **change}
        fakes = {
            name: mode.from_tensor(x) if isinstance(x, torch.Tensor) and name != "tau" else x
            for name, x in fakes.items()
        }
        with pytest.raises(error, match=words) as caught:
            call(fakes)
    assert str(caught.value) == message


def test_fake_tensors_do_not_see_values(backend):
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.full((5, 4), NAN))
        weights, indices = call({"logits": fake, "seed": mode.from_tensor(SEED)})
    assert weights.shape == indices.shape == (5, 2)


@pytest.mark.promise("G7")
def test_nan_is_refused_at_once(backend):
    start = time.perf_counter()
    for columns in (8, 65536):
        with pytest.raises(ValueError, match="NaN"):
            call({"logits": torch.full((3, columns), NAN)})
    assert time.perf_counter() - start < 5


def test_refusals_survive_optimised_python():
    """No check is an assert, which ``python -O`` would drop."""
    for path in Path(ops.__file__).parent.glob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        assert not any(isinstance(node, ast.Assert) for node in nodes), path.name


@pytest.mark.unsanitized("time goes into torch.compile")
@pytest.mark.untwinned("torch.compile calls the kernels that other tests call")
def test_bad_values_are_refused_after_compiling(kernels):
    torch._dynamo.reset()
    sample = torch.compile(
        lambda x: ops.gumbel_topk(x, 2, tau=1.0, seed=SEED), backend="aot_eager", fullgraph=True
    )
    sample(torch.zeros(3, 4))
    with pytest.raises(RuntimeError, match=r"gumbel_topk: logits must hold no NaN, no \+inf"):
        sample(torch.full((3, 4), NAN))


def test_the_operator_guards_memory_on_its_own(kernels):
    """What Python refuses by name, C++ refuses as well: the quick call relies on it."""
    sample = torch.ops.pyfast_nas.gumbel_topk.default
    backward = torch.ops.pyfast_nas.gumbel_topk_backward.default
    uniform = torch.ops.pyfast_nas.philox_uniform.default
    logits = torch.zeros(5, 4)
    keys, indices, grad = torch.zeros(5, 4), torch.zeros(5, 2).long(), torch.zeros(5, 2)
    calls = [
        lambda: sample(torch.zeros(4), 1, 1.0, SEED, False, False, None),
        lambda: sample(torch.zeros(5, 0), 1, 1.0, SEED, False, False, None),
        lambda: sample(logits, 5, 1.0, SEED, False, False, None),
        lambda: sample(logits, 2, NAN, SEED, False, False, None),
        lambda: sample(logits, 2, 1.0, SEED[:1], False, False, None),
        lambda: sample(logits, 2, 1.0, SEED, False, False, torch.zeros(4, 4)),
        lambda: sample(logits.long(), 2, 1.0, SEED, False, False, None),
        lambda: backward(grad[:3], keys, indices, 1.0, False),
        lambda: backward(grad.double(), keys, indices, 1.0, False),
        lambda: backward(grad, keys, indices.int(), 1.0, False),
        lambda: uniform(SEED, 2**32 - 1, 2, 4, 0),
        lambda: uniform(SEED, 0, 2, 2**26 + 1, 0),
        lambda: uniform(SEED, 0, 2, 4, 256),
    ]
    for index, broken in enumerate(calls):
        with pytest.raises(RuntimeError, match=r"gumbel_topk|philox_uniform"):
            pytest.fail(f"call {index} was accepted: {broken()}")


@pytest.mark.parametrize("shift", [-1, 4])
def test_the_backward_reaches_for_no_column_beyond_its_rows(kernels, shift):
    backward = torch.ops.pyfast_nas.gumbel_topk_backward.default
    indices = torch.zeros(5, 2).long() + shift
    try:
        grad = backward(torch.ones(5, 2), torch.zeros(5, 4), indices, 1.0, False)
    except RuntimeError as error:
        assert "indices must be columns of keys" in str(error)
    else:  # a GPU is not waited for: it gives such rows no gradient
        assert not grad.any() and _ext.library().record["kind"] == "twin"

"""Whether a form computes what a module's own ``forward`` computes: both are run and compared.

Copies are compared, in float64 on the CPU, with random values everywhere; the model, its hooks and
torch's random state see nothing of it.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from pyfast_nas.nn.forms import Form
from pyfast_nas.nn.fusion import Hint, Recipes, Term, gather
from pyfast_nas.nn.recognition import foreign_leaf, foreign_settings, recognise
from pyfast_nas.nn.replacement import put_back

__all__ = ["compare_candidate", "compare_form", "hint_of", "stride_of"]

# Of float64: the two differ in the order of sums only, which batch norms of few values amplify.
_RTOL, _ATOL = 1e-7, 1e-9
_SIZE = (3, 8, 8)  # samples, rows, columns


def hint_of(candidate: nn.Module, channels: int) -> Hint | None:
    """Return how a candidate is to be looked at: None where its structure says all.

    Args:
        candidate: A candidate.
        channels: Channels of its input.
    """
    if (recipe := recognise(candidate)) is not None:
        return None if recipe.certain else "plain"
    if recognise(candidate, wrappers=True) is not None:
        return "wrapper"
    if any(True for _ in (*candidate.children(), *candidate.parameters(), *candidate.buffers())):
        return "plain"
    return _observed(candidate, channels)


def _observed(leaf: nn.Module, channels: int) -> Hint:
    """Run a module without parts: the identity, zeros, or something else."""
    fixed = (int, float, str, tuple, type(None))
    if not all(isinstance(value, fixed) for value in foreign_settings(leaf).values()):
        return "plain"
    seen = set()
    with _aside():
        for training in (True, False):
            twin = _copy_of(leaf).train(training)
            x = _random((_SIZE[0], channels, *_SIZE[1:]), seed=int(training))
            try:
                y = twin(x)
            except Exception:  # whatever a foreign module raises, it is not known
                return "plain"
            if not isinstance(y, Tensor):
                return "plain"
            if y.shape == x.shape and torch.equal(y, x):
                seen.add(("skip", 1))
            elif y.shape[:2] == x.shape[:2] and not y.any():
                seen.add(("zero", _SIZE[1] // y.shape[2] if y.dim() == 4 and y.numel() else 0))
            else:
                seen.add("plain")
    hint = seen.pop()
    return hint if not seen and hint in (("skip", 1), ("zero", 1), ("zero", 2)) else "plain"


def stride_of(module: nn.Module, channels: int) -> int | None:
    """Return how much smaller a module makes its input, or None where it is not 1, 2 or 4 times.

    Args:
        module: A module that a cell runs on one of its inputs.
        channels: Channels of its input.
    """
    with _aside():
        try:
            y = _copy_of(module)(_random((_SIZE[0], channels, *_SIZE[1:]), seed=0))
        except Exception:  # whatever a foreign module raises, it is not known
            return None
    sizes = {(_SIZE[1] // stride, _SIZE[2] // stride): stride for stride in (1, 2, 4)}
    return sizes.get(tuple(y.shape[2:])) if isinstance(y, Tensor) else None


def compare_candidate(candidate: nn.Module, hint: Hint, channels: int) -> str | None:
    """Say in what a candidate differs from what it was taken for, or return None.

    Args:
        candidate: A candidate whose structure does not say what it computes.
        hint: What it was taken for.
        channels: Channels of its input.
    """

    def original(module: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
        return weights[0] * module(x)

    def fused(module: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
        recipe = foreign_leaf(module, *hint) if isinstance(hint, tuple) else None
        recipe = recipe or recognise(module, wrappers=True)
        if recipe.kind == "zero":
            stride = recipe.stride
            return 0 * weights[0] * x[:, :, ::stride, ::stride]
        call = gather([x], [Term(0, module, recipe)], weights)
        if call is None or not call.places:
            raise RuntimeError("its layers do not fit together")
        return call.run(weights)

    shape = (_SIZE[0], channels, *_SIZE[1:])
    return _compare(candidate, original, fused, [shape], (1,), "its layers in order")


def compare_form(
    module: nn.Module, form: Form, hints: dict[int, Hint], channels: Sequence[int]
) -> str | None:
    """Say in what ``module`` differs from ``form``, or return None.

    Args:
        module: A module with a ``forward(x, weights)`` of its own. What is inside it may be
            replaced; its copy is put back before it runs.
        form: What it is taken to compute.
        hints: How to look at its candidates, by place.
        channels: Channels of each of its inputs.
    """
    recipes = Recipes(hints)
    return _compare(
        module,
        lambda m, *arguments: m(*arguments),
        lambda m, *arguments: form.run(m, *arguments, recipes),
        [
            (_SIZE[0], width, _SIZE[1] * stride, _SIZE[2] * stride)
            for width, stride in zip(channels, form.strides, strict=True)
        ],
        form.shape(module),
        form.meaning,
    )


def _compare(
    module: nn.Module,
    original: Callable[..., Tensor],
    fused: Callable[..., Tensor],
    inputs: Sequence[tuple[int, ...]],
    shape: tuple[int, ...],
    meaning: str,
) -> str | None:
    """Say in what two functions of a module, its inputs and weights differ, or return None.

    Args:
        module: The module; copies of it are run.
        original: What it computes.
        fused: What it is taken to compute.
        inputs: Shape of each input.
        shape: Shape of the weights.
        meaning: What it is taken to compute, in words.
    """
    with _aside():
        try:
            ours = _randomised(_copy_of(module))
            theirs = copy.deepcopy(ours)
            put_back(theirs)
        except Exception as error:
            return f"it cannot be copied ({_first_line(error)})"
        for step, (training, kind) in enumerate(
            ((True, "any"), (True, "one"), (False, "any"), (True, "any"))
        ):
            xs = [_random(x, seed=3 * step + 2 * place) for place, x in enumerate(inputs)]
            weights = _random(shape, seed=3 * step + 1)
            if kind == "one":  # all weights but one of each row exactly zero
                one = torch.eye(shape[-1], dtype=weights.dtype)[step % shape[-1]]
                weights = one.expand(shape).clone()
            runs = []
            for run, twin in ((original, theirs), (fused, ours)):
                try:
                    runs.append(_run(run, twin.train(training), xs, weights))
                except Exception as error:
                    whose = "its forward" if run is original else "the fused form"
                    sizes = ", ".join(f"x {list(x)}" for x in inputs)
                    line = _first_line(error)
                    return f"{whose} fails on {sizes} and weights {list(shape)}: {line}"
            if difference := _difference(*runs):
                mode = "training" if training else "evaluation"
                return f"{difference} in {mode} mode from {meaning}"
    return None


def _run(
    function: Callable[..., Tensor], module: nn.Module, xs: Sequence[Tensor], weights: Tensor
) -> dict[str, Tensor | None]:
    """Run once forward and backward and return everything that can be seen of it, by name."""
    torch.manual_seed(0)  # dropout of modules that run as they stand
    # With a blank in them, which no parameter's name has.
    names = ("the input",) if len(xs) == 1 else ("the first input", "the second input")
    given = {name: x.clone().requires_grad_() for name, x in zip(names, xs, strict=True)}
    inner = [x * 1 for x in given.values()]  # a leaf that needs a gradient refuses changes in place
    versions = [x._version for x in inner]
    given["the weights"] = weights.clone().requires_grad_()
    y = function(module, *inner, given["the weights"])
    if [x._version for x in inner] != versions:
        raise RuntimeError("the input is changed in place")
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    cotangent = _random(y.shape, seed=99)
    gradients = torch.autograd.grad(
        y, [*given.values(), *parameters.values()], cotangent, allow_unused=True
    )
    seen: dict[str, Tensor | None] = {"the output": y.detach()}
    for name, gradient in zip((*given, *parameters), gradients, strict=True):
        # Nobody can tell a missing gradient from zero, but the optimizer of a parameter.
        if gradient is None and name in given:
            gradient = torch.zeros_like(given[name])
        seen[f"the gradient of {name}"] = gradient
    return seen | {f"the buffer {name}": b.clone() for name, b in module.named_buffers()}


def _difference(want: dict[str, Tensor | None], got: dict[str, Tensor | None]) -> str | None:
    for name, value in want.items():
        other = got[name]
        if (value is None) != (other is None):
            return f"{name} differs"
        if value is None:
            continue
        if value.shape != other.shape or value.dtype != other.dtype:
            return f"{name} differs in shape"
        scale = max(1.0, float(value.abs().max())) if value.is_floating_point() else 1.0
        if not torch.allclose(other, value, rtol=_RTOL, atol=_ATOL * scale):
            return f"{name} differs"
    return None


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """Whatever mode the caller is in: plain double-precision autograd, random state put back."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.random.fork_rng(devices=[]),
        torch.device("cpu"),
    ):
        yield


def _copy_of(module: nn.Module) -> nn.Module:
    """Return a copy in float64 on the CPU whose hooks, made for the model's data, are gone."""
    twin = copy.deepcopy(module).cpu().double()
    for part in twin.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            getattr(part, hooks).clear()
        part._backward_pre_hooks.clear()
    return twin


def _randomised(module: nn.Module) -> nn.Module:
    """Give everything values that no term of a formula is blind to."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                size = 0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                # Vectors are scales and variances; kernels have both signs.
                positive = torch.rand(tensor.shape, generator=generator) < 0.5
                sign = 1.0 if tensor.dim() < 2 else torch.where(positive, 1.0, -1.0)
                tensor.copy_(size * sign)
    return module


def _random(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"

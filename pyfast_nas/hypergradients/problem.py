"""A bilevel problem: two losses, weights and architecture parameters, and passes without a trace.

Every evaluation begins at the random state of the caller and gives it back, so two evaluations see
the same dropout masks: finite differences rest on that.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyfast_nas.errors import ConfigError
from pyfast_nas.hypergradients import vectors
from pyfast_nas.hypergradients.inner_optimizer import InnerOptimizer
from pyfast_nas.typing import LossFn

__all__ = ["BilevelProblem", "Split", "moved", "replayed_streams", "untouched"]

Split = Literal["train", "valid"]


@dataclasses.dataclass(kw_only=True, eq=False)
class BilevelProblem:
    r"""Two losses, the inner one's weights, and the architecture parameters of both.

    Minimise :math:`L_{valid}(w^*(\alpha), \alpha)` over :math:`\alpha` where :math:`w^*` minimises
    :math:`L_{train}(w, \alpha)`. Losses are evaluated at the current
    values of ``weights`` and ``alphas``.

    Args:
        weights: Leaves that require a gradient; during a call they may hold other values, and
            hold their own again after it.
        alphas: Leaves that require a gradient, none of them among the weights.
        train_loss: ``batch -> scalar``, the inner loss.
        valid_loss: ``batch -> scalar``, the outer loss.
        weight_optimizer: What trains the weights: estimators read its learning rate, momentum and
            decay, and never change it.
        without_trace: Context inside of which passes leave the buffers of a model alone; entered
            once by an estimator, whose passes all begin at the same random state of torch anyway.
            What it yields, if anything, is called before each pass.

    Raises:
        ConfigError: If a tensor is no leaf that requires a gradient, or is both weight and
            architecture parameter.

    Example:
        >>> w = torch.tensor([2.0], requires_grad=True)
        >>> a = torch.tensor([3.0], requires_grad=True)
        >>> problem = BilevelProblem(
        ...     weights=[w],
        ...     alphas=[a],
        ...     train_loss=lambda batch: 0.5 * (w - a).square().sum(),
        ...     valid_loss=lambda batch: (a * w).sum(),
        ... )
        >>> problem.gradients("valid", None, [a, w])
        (tensor([2.]), tensor([3.]))
    """

    weights: Sequence[Tensor]
    alphas: Sequence[Tensor]
    train_loss: Callable[[Any], Tensor]
    valid_loss: Callable[[Any], Tensor]
    weight_optimizer: torch.optim.Optimizer | InnerOptimizer | None = None
    without_trace: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    _rewind: Callable[[], Any] | None = dataclasses.field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.weights, self.alphas = tuple(self.weights), tuple(self.alphas)
        for kind, tensors in (("weights", self.weights), ("alphas", self.alphas)):
            for place, tensor in enumerate(tensors):
                if not (isinstance(tensor, Tensor) and tensor.is_leaf and tensor.requires_grad):
                    raise ConfigError(
                        f"BilevelProblem: {kind}[{place}] must be a leaf tensor that requires a "
                        f"gradient, got {_described(tensor)}"
                    )
        places = {id(weight): place for place, weight in enumerate(self.weights)}
        for place, alpha in enumerate(self.alphas):
            if id(alpha) in places:
                raise ConfigError(
                    f"BilevelProblem: alphas[{place}] must be no weight, got weights"
                    f"[{places[id(alpha)]}]"
                )
        if isinstance(self.weight_optimizer, torch.optim.Optimizer):
            self.weight_optimizer = InnerOptimizer(self.weight_optimizer, self.weights)

    @classmethod
    def of_module(
        cls,
        model: nn.Module,
        *,
        alphas: Sequence[Tensor] | None = None,
        loss: LossFn = F.cross_entropy,
        valid_loss: LossFn | None = None,
        weight_optimizer: torch.optim.Optimizer | None = None,
    ) -> Self:
        """Return the problem of a module whose batches are pairs ``(inputs, labels)``.

        Args:
            model: Called with the inputs. Every parameter that requires a gradient and is no
                architecture parameter is a weight.
            alphas: Architecture parameters; those of ``model.arch_parameters()`` if ``None``.
            loss: ``(outputs, labels) -> scalar``.
            valid_loss: The outer loss, where it is another one.
            weight_optimizer: What trains the weights.

        Example:
            >>> model = nn.Linear(2, 2)
            >>> problem = BilevelProblem.of_module(model, alphas=[model.bias])
            >>> len(problem.weights)
            1
        """
        alphas = list(model.arch_parameters() if alphas is None else alphas)
        arch = {id(alpha) for alpha in alphas}
        outer = loss if valid_loss is None else valid_loss
        return cls(
            weights=[p for p in model.parameters() if id(p) not in arch and p.requires_grad],
            alphas=alphas,
            train_loss=lambda batch: loss(model(batch[0]), batch[1]),
            valid_loss=lambda batch: outer(model(batch[0]), batch[1]),
            weight_optimizer=weight_optimizer,
            without_trace=lambda: untouched(model),
        )

    @property
    def device(self) -> torch.device:
        """Device of the first tensor."""
        return next(iter((*self.weights, *self.alphas))).device

    @property
    def inner(self) -> InnerOptimizer:
        """What trains the weights.

        Raises:
            ConfigError: If the problem was made without it.
        """
        if self.weight_optimizer is None:
            raise ConfigError(
                "BilevelProblem: weight_optimizer must be given where an estimator reads the "
                "learning rate, got None"
            )
        return self.weight_optimizer

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Leave buffers alone inside; a block inside of another one does nothing."""
        if self._rewind is not None:
            yield
            return
        with self.without_trace() as rewind:
            self._rewind = rewind or _nothing
            try:
                yield
            finally:
                self._rewind = None

    @contextlib.contextmanager
    def one_pass(self) -> Iterator[None]:
        """Leave no trace of a pass, with gradients on, from the same random state as the others."""
        with self.quiet(), replayed_streams(self.device), torch.enable_grad():
            self._rewind()
            yield

    def gradients(
        self,
        split: Split,
        batch: Any,
        wanted: Sequence[Tensor],
        *,
        create_graph: bool = False,
        tangents: bool = False,
    ) -> tuple[Tensor, ...]:
        """Return the gradients of one loss at the current values; zero where it depends on none.

        What is not wanted requires no gradient meanwhile, and is not computed.

        Args:
            split: ``"train"`` or ``"valid"``.
            batch: Handed to the loss.
            wanted: Any of the weights and architecture parameters.
            create_graph: Whether the gradients can be differentiated, by all parameters.
            tangents: Whether parameters carry tangents: then all of them go on requiring a
                gradient, since an operator without a forward derivative refuses only such.

        Raises:
            ValueError: If the loss is no scalar.
        """
        with self.one_pass(), contextlib.ExitStack() as stack:
            if not (create_graph or tangents):
                stack.enter_context(self._only(wanted))
            loss = (self.train_loss if split == "train" else self.valid_loss)(batch)
            if not isinstance(loss, Tensor) or loss.dim() != 0:
                raise ValueError(
                    f"BilevelProblem: {split}_loss must return a scalar, got {_described(loss)}"
                )
            if not wanted or not loss.requires_grad:
                return tuple(vectors.zeros_like(wanted))
            return torch.autograd.grad(
                loss, wanted, create_graph=create_graph, allow_unused=True, materialize_grads=True
            )

    @contextlib.contextmanager
    def _only(self, wanted: Sequence[Tensor]) -> Iterator[None]:
        """Let nothing else require a gradient: fused operators look at that, not at the call."""
        kept = {id(tensor) for tensor in wanted}
        idle = [t for t in (*self.weights, *self.alphas) if id(t) not in kept and t.requires_grad]
        try:
            for tensor in idle:
                tensor.requires_grad_(False)
            yield
        finally:
            for tensor in idle:
                tensor.requires_grad_(True)


@contextlib.contextmanager
def moved(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield a copy of the tensors, and copy it back at the end whatever happens.

    Example:
        >>> w = torch.ones(2)
        >>> with moved([w]) as start:
        ...     w.mul_(3)
        tensor([3., 3.])
        >>> w
        tensor([1., 1.])
    """
    start = [tensor.detach().clone() for tensor in tensors]
    # Graphs made before stay good: they find their tensors with the values that they saw.
    with torch.autograd._unsafe_preserve_version_counter(tuple(tensors)):
        try:
            yield start
        finally:
            # A copy, since adding what was subtracted leaves half of all weights a bit off.
            vectors.copy_(tensors, start)


@contextlib.contextmanager
def replayed_streams(device: torch.device) -> Iterator[None]:
    """Give torch's random streams back as they were found.

    Example:
        >>> with replayed_streams(torch.device("cpu")):
        ...     first = torch.rand(())
        >>> bool(torch.rand(()) == first)
        True
    """
    is_cuda = device.type == "cuda"
    # While a CUDA graph is recorded no stream may be asked for its state.
    devices = [device] if is_cuda and not torch.cuda.is_current_stream_capturing() else []
    with torch.random.fork_rng(devices):
        yield


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Give the buffers of a module back as they were found; yield what resets them meanwhile.

    Layers work on copies, which graphs that are made inside may keep.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with untouched(norm) as rewind:
        ...     rewind()
        ...     y = norm(torch.ones(4, 2))
        >>> norm.running_mean, int(norm.num_batches_tracked)
        (tensor([0., 0.]), 0)
    """
    places = [
        (module._buffers, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]

    def rewind() -> None:
        copies = {id(buffer): buffer.clone() for *_, buffer in places}
        for buffers, name, buffer in places:
            buffers[name] = copies[id(buffer)]

    try:
        yield rewind
    finally:
        for buffers, name, buffer in places:
            buffers[name] = buffer


def _nothing() -> None:
    """Stand in for a reset where there is nothing to reset."""


def _described(thing: object) -> str:
    if not isinstance(thing, Tensor):
        return type(thing).__name__
    how = "requires a gradient" if thing.requires_grad else "requires no gradient"
    leaf = "leaf" if thing.is_leaf else "result of an operation"
    return f"a tensor of shape {list(thing.shape)} ({leaf}, {how})"

"""Whether gradients can be differentiated: what autograd itself leaves out, or only warns of."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence

from torch import Tensor

__all__ = ["refusing_gaps", "require_twice_differentiable"]


def require_twice_differentiable(gradients: Sequence[Tensor]) -> None:
    """Refuse gradients that went through an operation marked ``once_differentiable``.

    Autograd ends such a path in a node that raises when it runs. A derivative by chosen tensors
    runs only the nodes on the way to them, and that one is on no way: its part would be missing.

    Args:
        gradients: Made with ``create_graph=True``.

    Raises:
        NotImplementedError: If one of them ends so.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> require_twice_differentiable(
        ...     torch.autograd.grad(x.pow(3).sum(), x, create_graph=True)
        ... )
    """
    waiting = [g.grad_fn for g in gradients if g.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node.name() == "torch::autograd::Error":
            raise NotImplementedError(
                "HessianProducts: every operation must be differentiable twice for mode 'exact', "
                "got one marked once_differentiable; mode='finite_difference' needs one derivative"
            )
        fresh = {following for following, _ in node.next_functions if following} - seen
        seen |= fresh
        waiting.extend(fresh)


@contextlib.contextmanager
def refusing_gaps() -> Iterator[None]:
    """Raise where backward comes to an operator without a derivative, of which torch only warns.

    Raises:
        NotImplementedError: If backward comes to one.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> with refusing_gaps():
        ...     torch.autograd.grad(x.pow(3).sum(), x)
        (tensor([3., 3.]),)
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*an autograd kernel was not registered")
        try:
            yield
        except UserWarning as warning:
            operator = str(warning).split(": an autograd kernel")[0]
            raise NotImplementedError(
                "HessianProducts: every operation must be differentiable twice for mode 'exact', "
                f"got {operator:.200}; mode='finite_difference' needs one derivative"
            ) from warning

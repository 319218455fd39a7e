"""Type aliases shared by every room of the package."""

from collections.abc import Callable, Mapping

from torch import Tensor

__all__ = ["Alphas", "Batch", "LossFn", "Metrics"]

Batch = tuple[Tensor, Tensor]  # inputs [batch, ...], labels [batch]
LossFn = Callable[[Tensor, Tensor], Tensor]  # (outputs, labels) -> scalar, mean over the batch
Metrics = dict[str, Tensor | float]  # tensors stay on their device until they are logged
Alphas = Mapping[str, Tensor]  # table name -> logits [rows, num_ops]

r"""GDAS: search with one sampled sub-graph per step.

Dong & Yang, "Searching for a Robust Neural Architecture in Four GPU Hours", CVPR 2019,
arXiv 1910.04465.

From the paper: one candidate of each row is drawn by the Gumbel-max trick, all cells of a kind
share the draw, and the logits get a straight-through gradient at a temperature that falls linearly;
weights and architecture learn in turn, each from a draw of its own. With perturbed logits
:math:`\kappa = \alpha + G`, their softmax :math:`q = \mathrm{softmax}(\kappa / \tau)` and the drawn
candidate :math:`s`, every row computes :math:`y = h_s\, o_s(x)` with
:math:`h = \mathbf 1_s - \mathrm{sg}(q) + q`, hence

.. math::
    \frac{\partial L}{\partial\alpha_j} = \frac1\tau\, q_j \Big(c_j - \sum_i q_i c_i\Big)

with :math:`c_s = \langle \partial L/\partial y, o_s(x)\rangle` and no others (variant B).

From the authors' code: the optimizers and their constants; and variant A, which its NAS-Bench-201
path computes: to every element of :math:`y` the scalars :math:`h_i` of the candidates that did not
run are added. They are zero, but they have a gradient, as if each of these candidates had returned
ones: :math:`c_i = \sum \partial L/\partial y` for :math:`i \ne s`. It is there to reproduce
results of that code.

Ours: :math:`s` is the arg-max of :math:`\kappa`, since rounding makes equals of what is unlike in
:math:`q`; no noise is ever infinite, so that nothing has to be drawn again; the architecture step
comes first, as in DARTS, where the authors' code begins with the weights; one draw serves all
tables. The architecture that is derived is the space's: in the DARTS space a node keeps two edges
from different sources, where the authors' code lets both come from the same one.
"""

import dataclasses
from typing import Annotated, ClassVar, Literal

import torch

from pyfast_nas.algorithms.options import Range
from pyfast_nas.algorithms.path_search import PathSearch
from pyfast_nas.algorithms.sub_graphs import SubGraphs
from pyfast_nas.algorithms.temperature import TemperedSearch
from pyfast_nas.nn import GateOutput
from pyfast_nas.typing import Batch, Metrics

__all__ = ["GDAS"]


@dataclasses.dataclass(kw_only=True, eq=False)
class GDAS(TemperedSearch, PathSearch):
    """GDAS; the equations stand at the top of the module.

    Example:
        >>> import torch
        >>> from pyfast_nas import spaces
        >>> space, algorithm = spaces.Toy(), GDAS()
        >>> algorithm.prepare(space.supernet(), space=space, epochs=2, steps_per_epoch=1)
        >>> batch = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
        >>> [algorithm.step(batch, batch)["tau"] for _ in range(2)]
        [10.0, 0.1]

    References:
        Dong & Yang, CVPR 2019, section 3.2.
    """

    name: ClassVar[str] = "gdas"

    weight_nesterov: bool = True
    """Whether the momentum of the weights is Nesterov's."""

    weight_decay: Annotated[float, Range(at_least=0)] = 5e-4
    """L2 penalty of the weights (coupled, as in SGD)."""

    variant: Literal["A", "B"] = "B"
    """Gradient of the logits: from the candidate that ran (B), or also as if all others had
    returned ones, as in the authors' code for NAS-Bench-201 (A)."""

    def _architecture_step(self, valid: Batch, on_device: bool) -> Metrics:
        with self._without_trace():
            drawn = self._draw(self.supernet.logits(), self.seed, on_device)
            loss, _, metrics = self._evaluate("valid", valid, self._gates(drawn))
            gradients = torch.autograd.grad(
                loss, self.alpha_parameters, allow_unused=True, materialize_grads=True
            )
        return metrics | self._update_alphas(gradients)

    def _gates(self, drawn: SubGraphs) -> dict[str, GateOutput]:
        gates = drawn.gates(0)
        if self.variant == "B":
            return gates
        # All other candidates have the same gate gradient, and their q add up to 1 - q_s.
        q = drawn.weights[:, 0]
        shifts = (q.detach() - q).split(list(drawn.rows.values()))
        return {
            table: dataclasses.replace(gate, shift=shift)
            for (table, gate), shift in zip(gates.items(), shifts, strict=True)
        }

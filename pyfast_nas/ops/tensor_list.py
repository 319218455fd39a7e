"""Vectors that are lists of tensors: the parameters of a network, their gradients and directions.

One pass over the memory for each function, however many tensors there are. Scalars may be 0-dim
tensors on the device of the lists, and results are: nothing waits for the device. Nothing is
differentiable, as directions are constants in every hypergradient; what is written to must not
require a gradient while gradients are recorded.

Lists that ``flat_like`` made are passed over as a single tensor.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyfast_nas import _ext
from pyfast_nas.ops import _library
from pyfast_nas.ops import reference_tensor_list as reference
from pyfast_nas.ops._list_checks import check_lists, refuse_gradients, scalar_of
from pyfast_nas.ops.flat_list import FlatList, flat_like

__all__ = [
    "FlatList",
    "axpy_",
    "central_difference_step",
    "cg_start",
    "cg_step_",
    "difference",
    "dot",
    "flat_like",
    "neumann_step_",
    "norm",
    "perturb",
    "scale_",
]

Lists = Sequence[Tensor]


def axpy_(ys: Lists, a: float | Tensor, xs: Lists) -> None:
    r"""Add a multiple of a list to another: :math:`y \leftarrow y + a x`.

    Args:
        ys: What is added to.
        a: The factor, a number or a 0-dim tensor.
        xs: What is added, tensors of the shapes of ``ys``; ``ys`` itself may be.

    Raises:
        ValueError: If lists are empty or of different lengths or shapes, or if tensors that are
            written to share memory.
        TypeError: If something is not a tensor, or of a dtype that is not served.
        RuntimeError: If tensors are on different devices, or one that is written to requires a
            gradient while gradients are recorded.

    Example:
        >>> ys = [torch.ones(2), torch.ones(1)]
        >>> axpy_(ys, 0.5, [torch.tensor([2.0, 4.0]), torch.zeros(1)])
        >>> ys
        [tensor([2., 3.]), tensor([1.])]
    """
    factor = scalar_of("axpy_", "a", a, ys)
    call = _Call("axpy_", ("ys", "xs"), (ys, xs), written=1)
    call.run(_library.call_axpy, factor, lambda: reference.axpy_(ys, xs, factor.value()))


def scale_(xs: Lists, a: float | Tensor) -> None:
    r"""Multiply a list by a number: :math:`x \leftarrow a x`.

    Args:
        xs: What is multiplied.
        a: The factor, a number or a 0-dim tensor.

    Raises:
        ValueError: As ``axpy_``, and so on.

    Example:
        >>> xs = [torch.ones(2)]
        >>> scale_(xs, torch.tensor(3.0))
        >>> xs
        [tensor([3., 3.])]
    """
    factor = scalar_of("scale_", "a", a, xs)
    call = _Call("scale_", ("xs",), (xs,), written=1)
    call.run(_library.call_scale, factor, lambda: reference.scale_(xs, factor.value()))


def dot(xs: Lists, ys: Lists) -> Tensor:
    r"""Return :math:`\langle x, y\rangle` over all tensors, added up in float64 in a fixed order.

    Args:
        xs: Any tensors.
        ys: Tensors of the shapes of ``xs``.

    Returns:
        A 0-dim tensor on the device of the lists: float64 for float64, else float32.

    Raises:
        ValueError: If lists are empty or of different lengths or shapes.
        TypeError: If something is not a tensor, or of a dtype that is not served.
        RuntimeError: If tensors are on different devices.

    Note:
        The bits depend on no thread. A list in flat storage may give another last bit than the same
        values elsewhere, since what is added up first follows from where tensors end.

    Example:
        >>> dot([torch.ones(2), torch.ones(1)], [torch.ones(2), torch.full((1,), 3.0)])
        tensor(5.)
    """
    return _sum("dot", ("xs", "ys"), (xs, ys), reference.SUM)


def norm(xs: Lists) -> Tensor:
    r"""Return the length :math:`\lVert x\rVert_2` of all tensors as one vector.

    Args:
        xs: Any tensors.

    Returns:
        A 0-dim tensor, as of ``dot``.

    Raises:
        ValueError: As ``dot``, and so on.

    Example:
        >>> norm([torch.tensor([3.0]), torch.tensor([4.0])])
        tensor(5.)
    """
    return _sum("norm", ("xs",), (xs,), reference.ROOT)


def central_difference_step(vs: Lists, radius: float = 0.01) -> Tensor:
    r"""Return how far central differences go along ``vs``: :math:`\epsilon = r / \lVert v\rVert`.

    Args:
        vs: The direction.
        radius: Length of the perturbation, greater than zero.

    Returns:
        A 0-dim tensor, as of ``dot``, for ``perturb`` and ``difference``: zero where the length is
        zero, NaN where it is not finite.

    Raises:
        ValueError: If ``radius`` is not greater than zero; otherwise as ``dot``.

    Example:
        >>> central_difference_step([torch.tensor([3.0]), torch.tensor([4.0])])
        tensor(0.0020)

    References:
        Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, eq. 8.
    """
    if not radius > 0:
        raise ValueError(
            f"central_difference_step: radius must be greater than 0, got {radius!r:.200}"
        )
    return _sum("central_difference_step", ("vs",), (vs,), reference.STEP, float(radius))


def perturb(
    ws: Lists, eps: float | Tensor, vs: Lists, *, c: float = 1.0, out: Lists | None = None
) -> Lists:
    r"""Return :math:`w + c\,\epsilon\,v`, and exactly :math:`w` where :math:`c\,\epsilon = 0`.

    Args:
        ws: The point, left as it is; parameters that require gradients may be.
        eps: The step, a number or a 0-dim tensor such as ``central_difference_step`` gives.
        vs: The direction, tensors of the shapes of ``ws``.
        c: A further factor: 1 and -1 for both ends of a central difference.
        out: Where to put it; a fresh ``flat_like(ws)`` by default. ``ws`` or ``vs`` itself may be.

    Returns:
        ``out``.

    Raises:
        ValueError: As ``axpy_``, and so on.

    Example:
        >>> ws, vs = [torch.zeros(2)], [torch.tensor([3.0, 4.0])]
        >>> perturb(ws, central_difference_step(vs, 1.0), vs)[0]
        tensor([0.6000, 0.8000])
    """
    names = ("out", "ws", "vs")
    out = _fresh("perturb", names[1:], (ws, vs)) if out is None else out
    lists, factor = (out, ws, vs), scalar_of("perturb", "eps", eps, ws, float(c))
    call = _Call("perturb", names, lists, written=1)
    call.run(_library.call_perturb, factor, lambda: reference.perturb_into(*lists, factor.value()))
    return out


def difference(xs: Lists, ys: Lists, eps: float | Tensor, *, out: Lists | None = None) -> Lists:
    r"""Return the central difference :math:`(x - y) / 2\epsilon`; zero where :math:`\epsilon` is.

    NaN where :math:`\epsilon` is not finite.

    Args:
        xs: Gradients at the one end.
        ys: Gradients at the other, tensors of the shapes of ``xs``.
        eps: The step, a number or a 0-dim tensor.
        out: Where to put it; a fresh ``flat_like(xs)`` by default. ``xs`` or ``ys`` itself may be.

    Returns:
        ``out``.

    Raises:
        ValueError: As ``axpy_``, and so on.

    Example:
        >>> difference([torch.tensor([3.0])], [torch.tensor([1.0])], 0.5)[0]
        tensor([2.])
    """
    names = ("out", "xs", "ys")
    out = _fresh("difference", names[1:], (xs, ys)) if out is None else out
    lists, divisor = (out, xs, ys), scalar_of("difference", "eps", eps, xs)
    half = _over(divisor.number)  # the kernel divides by the tensor
    call = _Call("difference", names, lists, written=1)
    call.run(
        _library.call_difference,
        (half, divisor.tensor),
        lambda: reference.difference_into(*lists, divisor.value()),
    )
    return out


def neumann_step_(ps: Lists, us: Lists, hs: Lists, gamma: float | Tensor) -> None:
    r"""Take the next term of a Neumann series.

    .. math:: u \leftarrow u - \gamma h, \qquad p \leftarrow p + u

    With :math:`u = p = v` and :math:`h = Hu` at every step, ``k`` steps leave
    :math:`p = \sum_{j \le k} (I - \gamma H)^j v`.

    Args:
        ps: The sum.
        us: The term.
        hs: The product of the Hessian with the term.
        gamma: The step, a number or a 0-dim tensor.

    Raises:
        ValueError: As ``axpy_``, and so on.

    Example:
        >>> ps, us = [torch.ones(1)], [torch.ones(1)]
        >>> neumann_step_(ps, us, [2 * us[0]], 0.25)
        >>> ps, us
        ([tensor([1.5000])], [tensor([0.5000])])

    References:
        Lorraine, Vicol & Duvenaud, "Optimizing Millions of Hyperparameters by Implicit
        Differentiation", AISTATS 2020, alg. 3.
    """
    lists, factor = (ps, us, hs), scalar_of("neumann_step_", "gamma", gamma, ps)
    call = _Call("neumann_step_", ("ps", "us", "hs"), lists, written=2)
    call.run(
        _library.call_neumann_step,
        factor,
        lambda: reference.neumann_step_(*lists, factor.value()),
    )


def cg_start(rs: Lists) -> Tensor:
    r"""Return the state of conjugate gradients that begin with the residual ``rs``.

    Args:
        rs: The residual, equal to the first direction.

    Returns:
        Four numbers in float64, ``[4]``, on the device of the list, which ``cg_step_`` keeps:
        :math:`\langle r, r\rangle`, the last :math:`\alpha` and :math:`\beta`, and 1 once the
        curvature :math:`\langle p, Ap\rangle` was not positive, else 0.

    Raises:
        ValueError: As ``dot``, and so on.

    Example:
        >>> cg_start([torch.tensor([3.0, 4.0])])
        tensor([25.,  0.,  0.,  0.], dtype=torch.float64)
    """
    residual = _sum("cg_start", ("rs",), (rs,), reference.SUM)
    state = residual.new_zeros(4, dtype=torch.float64)
    state[reference.RESIDUAL] = residual
    return state


def cg_step_(zs: Lists, rs: Lists, ps: Lists, hs: Lists, state: Tensor) -> None:
    r"""Take a step of conjugate gradients for :math:`A z = v`, where :math:`h = A p`.

    .. math::
        \alpha = \frac{\langle r, r\rangle}{\langle p, h\rangle}, \quad
        z \leftarrow z + \alpha p, \quad r' = r - \alpha h, \quad
        p \leftarrow r' + \frac{\langle r', r'\rangle}{\langle r, r\rangle} p

    Where :math:`\langle p, h\rangle \le 0` the step and all that follow change nothing, and
    ``state[3]`` is 1: the host need not look to stay out of harm.

    Args:
        zs: The solution, zero at first.
        rs: The residual, ``v`` at first.
        ps: The direction, ``v`` at first.
        hs: The product of the matrix, damping included, with ``ps``.
        state: What ``cg_start`` gave.

    Raises:
        ValueError: As ``axpy_``, or if ``state`` is not a state.

    Example:
        >>> zs, rs, ps = [torch.zeros(2)], [torch.ones(2)], [torch.ones(2)]
        >>> state = cg_start(rs)
        >>> cg_step_(zs, rs, ps, [2 * ps[0]], state)
        >>> zs, state[3]
        ([tensor([0.5000, 0.5000])], tensor(0., dtype=torch.float64))

    References:
        Hestenes & Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952,
        sec. 3.
    """
    lists = (zs, rs, ps, hs)
    if not (isinstance(state, Tensor) and state.dtype is torch.float64 and state.shape == (4,)):
        raise ValueError("cg_step_: state must be what cg_start gave, four numbers in float64")
    call = _Call("cg_step_", ("zs", "rs", "ps", "hs"), lists, written=3)
    call.run(_library.call_cg_step, (state,), lambda: reference.cg_step_(*lists, state))


def _sum(
    op: str, names: Sequence[str], lists: Sequence[Lists], finish: int, radius: float = 0.0
) -> Tensor:
    def kernel(xs: Lists, *arguments) -> Tensor:
        ys = () if len(lists) == 2 else ([],)  # a list with itself
        return _library.call_dot(xs, *ys, *arguments)

    return _Call(op, names, lists).run(
        kernel,
        (finish, radius),
        lambda: reference.finished_dot(lists[0], lists[-1], finish, radius),
    )


def _fresh(op: str, names: Sequence[str], lists: Sequence[Lists]) -> FlatList:
    check_lists(op, names, lists)
    return flat_like(lists[0])


def _over(number: float) -> float:
    """Return 0.5 over a number: 0 over 0, NaN over infinity."""
    return 0.5 / number + (number - number) if number else 0.0


@dataclasses.dataclass(frozen=True)
class _Call:
    """One call on named lists, of which the first ``written`` are written to."""

    op: str
    names: Sequence[str]
    lists: Sequence[Lists]
    written: int = 0

    def run(self, kernel: Callable, arguments: Sequence, plain: Callable):
        """Run ``kernel`` behind the lists' own arguments where kernels serve, else ``plain``."""
        if torch.is_grad_enabled():
            for name, tensors in zip(self.names[: self.written], self.lists, strict=False):
                refuse_gradients(self.op, name, tensors)
        if self._kernels_serve():
            result = self._run(kernel, arguments)
        else:
            self._check()
            with torch.no_grad():
                result = plain()
        if self.written and not torch.compiler.is_compiling():
            self._note_writing()
        return result

    def _check(self) -> None:
        check_lists(self.op, self.names, self.lists, self.written)

    def _kernels_serve(self) -> bool:
        first = self.lists[0]
        x = first[0] if isinstance(first, list | tuple) and first else None
        if not isinstance(x, Tensor) or x.is_meta or torch.compiler.is_compiling():
            return False
        return _ext.compiled_for(x.device) and not torch._C._are_functorch_transforms_active()

    def _run(self, kernel: Callable, arguments: Sequence):
        """Hand lists in flat storage over as their buffers."""
        layout, flats, given = None, 0, []
        for place, tensors in enumerate(self.lists):
            if type(tensors) is FlatList and tensors._is_whole():
                layout = tensors._layout if layout is None else layout
                if tensors._layout is layout:
                    tensors, flats = [tensors._buffer], flats | 1 << place
            given.append(tensors)
        try:
            return kernel(*given, layout, flats, *arguments)
        except Exception:
            self._check()  # finds words for what the kernel has refused
            raise

    def _note_writing(self) -> None:
        """Let autograd refuse gradients through values that are not there any more."""
        for tensors in self.lists[: self.written]:
            is_flat = type(tensors) is FlatList and tensors._is_whole()
            torch.autograd.graph.increment_version([tensors._buffer] if is_flat else tensors)

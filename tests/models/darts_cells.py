"""Cells with two inputs as users have them: one form in many shapes, and others that look alike."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.models.darts_style import Halve, pooled, separable


def fit(wide_in, wide_out, affine=True):
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(wide_in, wide_out, 1, bias=False), nn.BatchNorm2d(wide_out, affine)
    )


class Lean(nn.Module):
    """Three candidates, so that many cells can be run."""

    def __init__(self, wide, step):
        super().__init__()
        self.paths = nn.ModuleList(
            [
                nn.Identity() if step == 1 else Halve(wide, wide, True),
                pooled(nn.MaxPool2d(3, step, 1), wide, False, 0.1),
                separable(wide, 3, step, True, 0.2),
            ]
        )

    def forward(self, data, parts):
        return sum(part * path(data) for part, path in zip(parts, self.paths, strict=True))


class Classic(nn.Module):
    """The last states only, chosen by a setting; a list that nothing was ever put in."""

    edge = Lean
    wide = (5, 6)
    wide_out = 8
    larger = 1

    def __init__(self, wide0=5, wide1=6, wide=4, shrink=False, take=2, nodes=3):
        super().__init__()
        self.before0 = fit(wide0, wide)
        self.before1 = fit(wide1, wide)
        self.take = take
        self.nodes = nodes
        self.mixes = nn.ModuleList()
        self.unused = nn.ModuleList()
        for node in range(nodes):
            for source in range(2 + node):
                self.mixes.append(self.edge(wide, 2 if shrink and source < 2 else 1))

    def start(self, a, b):
        return [self.before0(a), self.before1(b)]

    def node(self, states, at, table):
        return sum(self.mixes[at + j](s, table[at + j]) for j, s in enumerate(states))

    def end(self, states):
        return torch.cat(states[-self.take :], dim=1)

    def forward(self, a, b, table):
        states, at = self.start(a, b), 0
        for _ in range(self.nodes):
            states.append(self.node(states, at, table))
            at += len(states) - 1
        return self.end(states)


class HalvedBefore(Classic):
    """The older input is twice as large."""

    larger = 2

    def __init__(self, wide0=5, wide1=6, wide=4, **sizes):
        super().__init__(wide0, wide1, wide, **sizes)
        self.before0 = Halve(wide0, wide, True)


class Unfitted(Classic):
    """Nothing before the edges."""

    wide = (4, 4)

    def __init__(self):
        super().__init__(4, 4, 4)
        del self.before0, self.before1

    def start(self, a, b):
        return [a, b]


class Foreign(Classic):
    """What stands before the edges is of no known kind, or an identity."""

    wide = (5, 4)

    def __init__(self):
        super().__init__(5, 4, 4)
        self.before0 = nn.Sequential(nn.Conv2d(5, 4, 3, padding=1), nn.Tanh(), nn.Dropout(0.3))
        self.before1 = nn.Identity()


class Turned(Classic):
    """The layer of the newer input was made first."""

    def __init__(self):
        super().__init__(5, 6, 4)
        self.before0 = fit(6, 4)
        self.before1 = fit(5, 4)

    def start(self, a, b):
        return [self.before1(a), self.before0(b)]


class Named(Classic):
    """Edges in a dictionary."""

    def __init__(self):
        super().__init__()
        self.mixes = nn.ModuleDict({f"edge {at}": m for at, m in enumerate(self.mixes)})

    def node(self, states, at, table):
        return sum(self.mixes[f"edge {at + j}"](s, table[at + j]) for j, s in enumerate(states))


class BySource(Classic):
    """Edges of the first state first."""

    def node(self, states, at, table):
        here = len(states) - 2
        places = (here, 3 + here, 5 + here, 6 + here)
        return sum(self.mixes[p](s, table[p]) for p, s in zip(places, states, strict=False))


class Mean(Classic):
    """The mean of the states in place of their concatenation."""

    def end(self, states):
        return torch.stack(states[-self.take :]).mean(0)


class Backwards(Classic):
    """The last state first."""

    def end(self, states):
        return torch.cat(states[: -self.take - 1 : -1], dim=1)


class FirstStates(Classic):
    """The first states in place of the last."""

    def end(self, states):
        return torch.cat(states[2 : 2 + self.take], dim=1)


class Softened(Classic):
    """The weights are not yet weights."""

    def forward(self, a, b, table):
        return super().forward(a, b, table.softmax(-1))


class Averaged(Classic):
    """A node is the mean of its edges."""

    def node(self, states, at, table):
        return super().node(states, at, table) / len(states)


class Swapped(Classic):
    """Both layers fit both inputs, and the other one is taken."""

    wide = (5, 5)

    def __init__(self):
        super().__init__(5, 5, 4)

    def start(self, a, b):
        return [self.before0(b), self.before1(a)]


class Chained(Classic):
    """Every edge reads the last state."""

    def node(self, states, at, table):
        return super().node([states[-1]] * len(states), at, table)


class Residual(Classic):
    def node(self, states, at, table):
        return states[-1] + super().node(states, at, table)


class OtherInEvaluation(Classic):
    def end(self, states):
        y = super().end(states)
        return y if self.training else y.relu()


class WithoutGradient(Classic):
    """The same value; the older input gets no gradient."""

    def start(self, a, b):
        return [self.before0(a).detach() + 0 * self.before0(a).sum(), self.before1(b)]


class Dropped(Classic):
    """Edges are left out by chance."""

    def node(self, states, at, table):
        return super().node([F.dropout(s, 0.2, self.training) for s in states], at, table)


class InPlace(Classic):
    """What stands before the edges changes its input."""

    def __init__(self):
        super().__init__()
        self.before1[0].inplace = True


class Fickle(Classic):
    """Its forward cannot be run on what cells are given."""

    def forward(self, a, b, table):
        raise KeyError("not here")


class Trusting(Classic):
    """A weight for each edge too, as PC-DARTS has it."""

    def forward(self, a, b, table, trust):
        return super().forward(a, b, table * trust[:, None])


class Tower(nn.Module):
    """Cells of any kind after a stem, and a classifier: two tables, images of three colours."""

    def __init__(self, *cells, classes=4, wide=6):
        super().__init__()
        self.entry = nn.Sequential(nn.Conv2d(3, wide, 3, padding=1, bias=False))
        self.floors = nn.ModuleList(cells)
        self.tables = nn.ParameterList(
            nn.Parameter(1e-3 * torch.randn(len(cell.mixes), 3)) for cell in cells
        )
        self.exit = nn.Linear(cells[-1].wide_out, classes)

    def forward(self, images):
        a = b = self.entry(images)
        for cell, table in zip(self.floors, self.tables, strict=True):
            a, b = b, cell(a, b, table.softmax(-1))
        return self.exit(b.mean((2, 3)))


def tower():
    """A normal cell, one that shrinks, one after it."""
    return Tower(Classic(6, 6), Classic(6, 8, shrink=True), HalvedBefore(8, 8))


def cell(kind=Classic, **sizes):
    torch.manual_seed(0)
    return kind(**sizes).double()


def inputs(module, rows=8):
    """Both inputs, and the weights, of a cell as it is made without sizes."""
    generator = torch.Generator().manual_seed(1)
    older = rows * module.larger
    shapes = [(3, module.wide[0], older, older), (3, module.wide[1], rows, rows)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in (*shapes, (len(module.mixes), 3))
    ]


def outcome(module, arguments):
    """Everything that can be seen of a call, the gradients of inputs and weights among it."""
    torch.manual_seed(2)
    y = module(*(argument * 1 for argument in arguments))  # which may be changed in place
    leaves = [*arguments, *module.parameters()]
    gradients = torch.autograd.grad(y.square().sum(), leaves, allow_unused=True)
    return y.detach(), gradients, [buffer.clone() for buffer in module.buffers()]

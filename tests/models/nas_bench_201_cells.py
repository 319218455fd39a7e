"""Cells with one input whose edges are modules: one form in many shapes, and others that lie."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.models.nas_bench_201_style import Residual as Shrink
from tests.models.nas_bench_201_style import Same, Shut, Unit, menu


class Lane(nn.Module):
    """An edge with all five candidates."""

    def __init__(self, wide, affine=False):
        super().__init__()
        self.tools = nn.ModuleList(menu(wide, affine))

    def forward(self, signal, shares):
        return sum(share * tool(signal) for share, tool in zip(shares, self.tools, strict=True))


class Slim(nn.Module):
    """Three candidates, so that many cells can be run."""

    def __init__(self, wide, affine=True):
        super().__init__()
        self.tools = nn.ModuleDict(
            {"no": Shut(), "as it is": Same(), "conv": Unit(wide, wide, 3, affine=affine)}
        )

    def forward(self, signal, shares):
        tools = self.tools.values()
        return sum(share * tool(signal) for share, tool in zip(shares, tools, strict=True))


class Dense(nn.Module):
    """The last state only."""

    edge = Slim
    wide = 4

    def __init__(self, wide=4, nodes=3, **norms):
        super().__init__()
        self.nodes = nodes
        self.lanes = nn.ModuleList()
        for node in range(nodes):
            for _ in range(node + 1):
                self.lanes.append(self.edge(wide, **norms))

    def start(self, signal):
        return signal

    def node(self, states, at, table):
        return sum(self.lanes[at + j](s, table[at + j]) for j, s in enumerate(states))

    def end(self, states):
        return states[-1]

    def forward(self, signal, table):
        states, at = [self.start(signal)], 0
        for _ in range(self.nodes):
            states.append(self.node(states, at, table))
            at += len(states) - 1
        return self.end(states)


class Named(Dense):
    """Edges in a dictionary."""

    def __init__(self):
        super().__init__()
        self.lanes = nn.ModuleDict({f"lane {at}": lane for at, lane in enumerate(self.lanes)})

    def node(self, states, at, table):
        return sum(self.lanes[f"lane {at + j}"](s, table[at + j]) for j, s in enumerate(states))


class LastTwo(Dense):
    """The last two states, one after the other along the channels."""

    def end(self, states):
        return torch.cat(states[-2:], dim=1)


class Fitted(Dense):
    """A layer that fits the input to the cell."""

    wide = 5

    def __init__(self, nodes=3):
        super().__init__(nodes=nodes)
        self.before = Unit(5, 4, 1, affine=True)

    def start(self, signal):
        return self.before(signal)


class Halved(Fitted):
    """A layer that halves the image as well."""

    def __init__(self):
        super().__init__()
        self.before = Unit(5, 4, 3, stride=2)


class Foreign(Fitted):
    """What stands before the edges is of no known kind."""

    def __init__(self):
        super().__init__()
        self.before = nn.Sequential(nn.Conv2d(5, 4, 3, padding=1), nn.Tanh(), nn.Dropout(0.3))


class BySource(Dense):
    """Edges of the first state first."""

    def node(self, states, at, table):
        here = len(states) - 1
        places = (here, 2 + here, 3 + here)
        return sum(self.lanes[p](s, table[p]) for p, s in zip(places, states, strict=False))


class Summed(Dense):
    """The sum of all states."""

    def end(self, states):
        return sum(states)


class WithInput(Dense):
    """The input beside the last state."""

    def end(self, states):
        return torch.cat([states[0], states[-1]], dim=1)


class SecondLast(Dense):
    def end(self, states):
        return states[-2] + 0 * states[-1]


class Rectified(Dense):
    def end(self, states):
        return states[-1].relu()


class Softened(Dense):
    """The weights are not yet weights."""

    def forward(self, signal, table):
        return super().forward(signal, table.softmax(-1))


class Averaged(Dense):
    """A node is the mean of its edges."""

    def node(self, states, at, table):
        return super().node(states, at, table) / len(states)


class Chained(Dense):
    """Every edge reads the last state."""

    def node(self, states, at, table):
        return super().node([states[-1]] * len(states), at, table)


class Short(Dense):
    """The input is added to the outcome."""

    def end(self, states):
        return states[0] + states[-1]


class OtherInEvaluation(Dense):
    def end(self, states):
        return states[-1] if self.training else states[-1].relu()


class WithoutGradient(Dense):
    """The same value; the input gets a part of its gradient only."""

    def node(self, states, at, table):
        return super().node([states[0].detach(), *states[1:]], at, table)


class Dropped(Dense):
    """Edges are left out by chance."""

    def node(self, states, at, table):
        return super().node([F.dropout(s, 0.2, self.training) for s in states], at, table)


class InPlace(Fitted):
    """What stands before the edges changes its input."""

    def __init__(self):
        super().__init__()
        self.before.op[0].inplace = True


class Fickle(Dense):
    """Its forward cannot be run on what cells are given."""

    def forward(self, signal, table):
        raise KeyError("not here")


class Trusting(Dense):
    """A weight for each edge too."""

    def forward(self, signal, table, trust):
        return super().forward(signal, table * trust[:, None])


class District(nn.Module):
    """Stem, three stages of cells, classifier, one table."""

    def __init__(self, wide=4, cells=1, classes=4, nodes=3, affine=False):
        super().__init__()
        self.entry = nn.Sequential(
            nn.Conv2d(3, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide)
        )
        self.blocks = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.blocks.append(Shrink(wide, 2 * wide))
                wide *= 2
            self.blocks.extend(FullDense(wide, nodes, affine=affine) for _ in range(cells))
        self.exit = nn.Linear(wide, classes)
        self.logits = nn.Parameter(1e-3 * torch.randn(nodes * (nodes + 1) // 2, 5))

    def forward(self, images):
        table = F.softmax(self.logits, dim=-1)
        signal = self.entry(images)
        for block in self.blocks:
            signal = block(signal, table) if isinstance(block, FullDense) else block(signal)
        return self.exit(signal.relu().mean((2, 3)))


class FullDense(Dense):
    edge = Lane


def cell(kind=Dense, **sizes):
    torch.manual_seed(0)
    return kind(**sizes).double()


def inputs(module, rows=8):
    """The input and the weights of a cell."""
    generator = torch.Generator().manual_seed(1)
    columns = len(next(iter(module.lanes.children())).tools)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((3, module.wide, rows, rows), (len(module.lanes), columns))
    ]

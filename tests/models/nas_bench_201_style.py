"""A NAS-Bench-201 supernet as a user of the field's code would have it: the cell does the sums."""

import torch
import torch.nn.functional as F
from torch import nn


class Shut(nn.Module):
    def forward(self, inputs):
        return inputs.mul(0.0)


class Same(nn.Module):
    def forward(self, inputs):
        return inputs


class Unit(nn.Module):
    def __init__(self, wide_in, wide_out, size, stride=1, affine=False):
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(inplace=False),
            nn.Conv2d(wide_in, wide_out, size, stride, padding=size // 2, bias=False),
            nn.BatchNorm2d(wide_out, affine=affine),
        )

    def forward(self, inputs):
        return self.op(inputs)


class Pool(nn.Module):
    """Average pooling, behind a unit that fits the width where it must be fitted."""

    def __init__(self, wide_in, wide_out):
        super().__init__()
        self.fit = None if wide_in == wide_out else Unit(wide_in, wide_out, 1)
        self.op = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, inputs):
        return self.op(self.fit(inputs) if self.fit else inputs)


def menu(wide, affine=False):
    """The five candidates."""
    return [
        Shut(),
        Same(),
        Unit(wide, wide, 1, affine=affine),
        Unit(wide, wide, 3, affine=affine),
        Pool(wide, wide),
    ]


class DenseCell(nn.Module):
    """Four nodes; each is a sum over all edges and candidates into it."""

    def __init__(self, wide, nodes=4, affine=False):
        super().__init__()
        self.nodes = nodes
        self.links = nn.ModuleDict(
            {
                f"{target}<-{source}": nn.ModuleList(menu(wide, affine))
                for target in range(1, nodes)
                for source in range(target)
            }
        )
        self.rows = {name: row for row, name in enumerate(sorted(self.links))}

    def forward(self, inputs, table):
        found = [inputs]
        for target in range(1, self.nodes):
            incoming = []
            for source in range(target):
                name = f"{target}<-{source}"
                shares = table[self.rows[name]]
                incoming.append(
                    sum(
                        op(found[source]) * share
                        for op, share in zip(self.links[name], shares, strict=False)
                    )
                )
            found.append(sum(incoming))
        return found[-1]


class Residual(nn.Module):
    """What halves the image between two stages."""

    def __init__(self, wide_in, wide_out):
        super().__init__()
        self.first = Unit(wide_in, wide_out, 3, stride=2, affine=True)
        self.second = Unit(wide_out, wide_out, 3, affine=True)
        self.short = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(wide_in, wide_out, 1, bias=False))

    def forward(self, inputs):
        return self.short(inputs) + self.second(self.first(inputs))


class Bench(nn.Module):
    """Stem, three stages of cells, classifier, one table."""

    def __init__(self, wide=4, cells=1, classes=4, colours=3, affine=False):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(colours, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide)
        )
        layers = []
        for stage in range(3):
            if stage:
                layers.append(Residual(wide, 2 * wide))
                wide *= 2
            layers += [DenseCell(wide, affine=affine) for _ in range(cells)]
        self.layers = nn.ModuleList(layers)
        self.last = nn.Sequential(nn.BatchNorm2d(wide), nn.ReLU(inplace=True))
        self.head = nn.Linear(wide, classes)
        self.taste = nn.Parameter(1e-3 * torch.randn(6, 5))

    def forward(self, image):
        table = F.softmax(self.taste, dim=-1)
        feature = self.stem(image)
        for layer in self.layers:
            feature = layer(feature, table) if isinstance(layer, DenseCell) else layer(feature)
        return self.head(self.last(feature).mean((2, 3)))

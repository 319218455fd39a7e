"""A DARTS supernet as a user of the field's code would have it: nothing of ours inside."""

import torch
import torch.nn.functional as F
from torch import nn


class Nothing(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def forward(self, feature):
        if self.step == 1:
            return feature.mul(0.0)
        return feature[:, :, :: self.step, :: self.step].mul(0.0)


class Through(nn.Module):
    def forward(self, feature):
        return feature


class Halve(nn.Module):
    def __init__(self, wide_in, wide_out, affine):
        super().__init__()
        self.act = nn.ReLU(inplace=False)
        self.even = nn.Conv2d(wide_in, wide_out // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(wide_in, wide_out // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(wide_out, affine=affine)

    def forward(self, feature):
        feature = self.act(feature)
        return self.norm(torch.cat([self.even(feature), self.odd(feature[:, :, 1:, 1:])], dim=1))


class Block(nn.Module):
    """ReLU, convolutions, norm, in a sequence that is called."""

    def __init__(self, *layers):
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, feature):
        return self.net(feature)


def half_separable(wide, size, step, spread, affine, momentum):
    return [
        nn.ReLU(inplace=False),
        nn.Conv2d(
            wide,
            wide,
            size,
            stride=step,
            padding=spread * (size - 1) // 2,
            dilation=spread,
            groups=wide,
            bias=False,
        ),
        nn.Conv2d(wide, wide, 1, bias=False),
        nn.BatchNorm2d(wide, affine=affine, momentum=momentum),
    ]


def separable(wide, size, step, affine, momentum):
    first = half_separable(wide, size, step, 1, affine, momentum)
    return Block(*first, *half_separable(wide, size, 1, 1, affine, momentum))


def pooled(pool, wide, affine, momentum):
    return nn.Sequential(pool, nn.BatchNorm2d(wide, affine=affine, momentum=momentum))


def menu(wide, step, affine=False, momentum=0.1):
    """The eight candidates, built for a width and a stride."""
    return [
        Nothing(step),
        pooled(nn.MaxPool2d(3, stride=step, padding=1), wide, affine, momentum),
        pooled(
            nn.AvgPool2d(3, stride=step, padding=1, count_include_pad=False),
            wide,
            affine,
            momentum,
        ),
        Through() if step == 1 else Halve(wide, wide, affine),
        separable(wide, 3, step, affine, momentum),
        separable(wide, 5, step, affine, momentum),
        Block(*half_separable(wide, 3, step, 2, affine, momentum)),
        Block(*half_separable(wide, 5, step, 2, affine, momentum)),
    ]


class Blend(nn.Module):
    """The mixed operation of an edge."""

    def __init__(self, wide, step, **norms):
        super().__init__()
        self.choices = nn.ModuleList(menu(wide, step, **norms))

    def forward(self, feature, mixture):
        return sum(
            share * choice(feature) for share, choice in zip(mixture, self.choices, strict=False)
        )


class Graph(nn.Module):
    """A cell."""

    def __init__(self, steps, wide_older, wide_newer, wide, shrink, shrunk_before, **norms):
        super().__init__()
        affine = norms.get("affine", False)
        if shrunk_before:
            self.fit_older = Halve(wide_older, wide, affine)
        else:
            self.fit_older = Block(
                nn.ReLU(), nn.Conv2d(wide_older, wide, 1, bias=False), nn.BatchNorm2d(wide)
            )
        self.fit_newer = Block(
            nn.ReLU(), nn.Conv2d(wide_newer, wide, 1, bias=False), nn.BatchNorm2d(wide)
        )
        self.steps = steps
        self.links = nn.ModuleList(
            Blend(wide, 2 if shrink and source < 2 else 1, **norms)
            for step in range(steps)
            for source in range(2 + step)
        )

    def forward(self, older, newer, mixtures):
        found = [self.fit_older(older), self.fit_newer(newer)]
        at = 0
        for _ in range(self.steps):
            found.append(sum(self.links[at + j](s, mixtures[at + j]) for j, s in enumerate(found)))
            at += len(found) - 1
        return torch.cat(found[-self.steps :], dim=1)


class Searched(nn.Module):
    """The supernet: stem, cells of which two shrink the image, classifier, two tables."""

    def __init__(self, wide=6, depth=3, steps=2, classes=4, colours=3, **norms):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(colours, 3 * wide, 3, padding=1, bias=False), nn.BatchNorm2d(3 * wide)
        )
        older = newer = 3 * wide
        before = False
        self.stack = nn.ModuleList()
        for level in range(depth):
            shrink = level in (depth // 3, 2 * depth // 3)
            wide *= 2 if shrink else 1
            self.stack.append(Graph(steps, older, newer, wide, shrink, before, **norms))
            before, older, newer = shrink, newer, steps * wide
        self.head = nn.Linear(newer, classes)
        links = steps * (steps + 3) // 2
        self.taste_flat = nn.Parameter(1e-3 * torch.randn(links, 8))
        self.taste_shrink = nn.Parameter(1e-3 * torch.randn(links, 8))

    def forward(self, image):
        older = newer = self.stem(image)
        for graph in self.stack:
            shrinks = next(iter(graph.links)).choices[0].step == 2
            mixture = F.softmax(self.taste_shrink if shrinks else self.taste_flat, dim=-1)
            older, newer = newer, graph(older, newer, mixture)
        return self.head(newer.mean((2, 3)))

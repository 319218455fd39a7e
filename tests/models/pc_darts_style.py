"""Edges of PC-DARTS as a user of the field's code would have them: some channels are mixed."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.models.darts_style import menu


def interleave(feature, groups):
    samples, channels, rows, columns = feature.data.size()
    feature = feature.view(samples, groups, channels // groups, rows, columns)
    return torch.transpose(feature, 1, 2).contiguous().view(samples, -1, rows, columns)


class ShareBlend(nn.Module):
    def __init__(self, wide, step, share=4, **norms):
        super().__init__()
        self.share = share
        self.halve = nn.MaxPool2d(2, 2)
        self.choices = nn.ModuleList(menu(wide // share, step, **norms))

    def forward(self, feature, mixture):
        wide = feature.shape[1]
        seen = feature[:, : wide // self.share, :, :]
        rest = feature[:, wide // self.share :, :, :]
        mixed = sum(
            part * choice(seen) for part, choice in zip(mixture, self.choices, strict=False)
        )
        if mixed.shape[2] == feature.shape[2]:
            joined = torch.cat([mixed, rest], dim=1)
        else:
            joined = torch.cat([mixed, self.halve(rest)], dim=1)
        return interleave(joined, self.share)


class ReversedShareBlend(ShareBlend):
    """As above, but the rest comes first: another function of the same structure."""

    def forward(self, feature, mixture):
        return super().forward(feature.flip(1), mixture)


class ShareNet(nn.Module):
    """Two nodes of one cell, with normalised edges, and a classifier."""

    def __init__(self, wide=8, classes=4, colours=3, step=1, **norms):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(colours, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide)
        )
        self.links = nn.ModuleList(
            ShareBlend(wide, s, **norms) for s in (step, step, step, step, 1)
        )
        self.head = nn.Linear(2 * wide, classes)
        self.taste = nn.Parameter(1e-3 * torch.randn(5, 8))
        self.trust = nn.Parameter(1e-3 * torch.randn(5))

    def forward(self, image):
        first = second = self.stem(image)
        mixture = F.softmax(self.taste, dim=-1)
        trust = torch.cat([F.softmax(self.trust[:2], dim=-1), F.softmax(self.trust[2:], dim=-1)])
        third = sum(trust[i] * self.links[i](s, mixture[i]) for i, s in enumerate((first, second)))
        states = (first, second, third)
        fourth = sum(
            trust[2 + i] * self.links[2 + i](s, mixture[2 + i]) for i, s in enumerate(states)
        )
        return self.head(torch.cat([third, fourth], dim=1).mean((2, 3)))

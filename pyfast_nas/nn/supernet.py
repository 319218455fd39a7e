"""Supernets: a network whose edges mix candidates, with the architecture parameters inside."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pyfast_nas.nn.cell import Cell
from pyfast_nas.nn.fusion import is_served
from pyfast_nas.nn.gates import GateOutput, Softmax
from pyfast_nas.nn.mixed_op import MixedOp
from pyfast_nas.nn.stem import Stem, reduction_cells

__all__ = ["CellSupernet", "Supernet"]


class Supernet(nn.Module):
    """Base of all supernets: owns one table of architecture logits per kind of cell.

    A subclass builds its layers and says in `mix` what they compute from an input and the gates.

    Args:
        candidates: Table name -> candidate names of every row. Rows may differ in length.
        alpha_scale: Standard deviation of the initial logits.

    Attributes:
        alphas: Table name -> logits. Places past the end of a shorter row hold zeros that no
            gradient reaches; read `logits` to have them masked.
        candidates: As given, as tuples.

    Shape:
        ``alphas[table]`` is ``[rows, num_ops]``.
    """

    def __init__(
        self, candidates: Mapping[str, Sequence[Sequence[str]]], *, alpha_scale: float = 1e-3
    ) -> None:
        super().__init__()
        self.candidates: dict[str, tuple[tuple[str, ...], ...]] = {
            table: tuple(tuple(row) for row in rows) for table, rows in candidates.items()
        }
        self.alphas = nn.ParameterDict()
        for table, rows in self.candidates.items():
            lengths = torch.tensor([len(row) for row in rows])
            missing = torch.arange(int(lengths.max())) >= lengths[:, None]
            initial = alpha_scale * torch.randn(missing.shape)
            self.alphas[table] = nn.Parameter(initial.masked_fill(missing, 0.0))
            self.register_buffer(f"_missing_{table}", missing if missing.any() else None, False)

    def logits(self) -> dict[str, Tensor]:
        """Return the logits of every table, minus infinity where a row has no candidate."""
        result = {}
        for table, alpha in self.alphas.items():
            missing = getattr(self, f"_missing_{table}")
            result[table] = alpha if missing is None else alpha.masked_fill(missing, -torch.inf)
        return result

    def arch_parameters(self) -> list[nn.Parameter]:
        """Return the architecture parameters: one table of logits per kind of cell."""
        return list(self.alphas.values())

    def weight_parameters(self) -> list[nn.Parameter]:
        """Return every parameter that is not an architecture parameter."""
        arch = set(self.alphas.values())
        return [parameter for parameter in self.parameters() if parameter not in arch]

    def placed_edges(self) -> Iterator[tuple[str, int, MixedOp]]:
        """Yield every mixed operation with the table and the row whose weights it takes.

        A subclass that says so of all of them lets a search find the parameters of a candidate
        that the host does not know to have run: see `algorithms.StepGraph`.
        """
        yield from ()

    def forward(self, x: Tensor, gates: Mapping[str, GateOutput] | None = None) -> Tensor:
        """Return the class logits of a batch.

        Args:
            x: Batch of inputs.
            gates: Mixing weights by table; None takes the softmax of the supernet's own logits.
        """
        if gates is None:
            gate = Softmax()
            gates = {table: gate(logits) for table, logits in self.logits().items()}
        for table, rows in self.candidates.items():
            if table not in gates or gates[table].weights.shape[0] != len(rows):
                raise ValueError(
                    f"Supernet: gates must hold {len(rows)} rows for table {table!r}, got "
                    f"{list(gates[table].weights.shape) if table in gates else 'none'}"
                )
        return self.mix(x, gates)

    def mix(self, x: Tensor, gates: Mapping[str, GateOutput]) -> Tensor:
        """Return the class logits under the given gates."""
        raise NotImplementedError


class CellSupernet(Supernet):
    """Stem, a stack of searchable cells of which two reduce, global pooling, classifier.

    Args:
        candidates: Rows of the tables ``"normal"`` and ``"reduce"``.
        channels: Width of the first cells; it doubles at each reduction cell.
        cells: Number of cells; those at a third and at two thirds reduce.
        num_classes: Classes of the classifier.
        in_channels: Channels of the images.
        multiplier: How many states a cell concatenates; None means all nodes.
        stem: ``"cifar"`` (one 3x3 convolution) or ``"imagenet"`` (three of stride 2).
        track_running_stats: Whether batch norms keep running statistics.

    Attributes:
        sizes: The arguments that a derived network of the same sizes needs.

    Shape:
        ``[N, in_channels, H, W]`` -> ``[N, num_classes]``.

    Example:
        >>> rows = {"normal": [["none", "skip_connect"]] * 2}
        >>> rows["reduce"] = rows["normal"]
        >>> net = CellSupernet(rows, channels=4, cells=2, num_classes=3, in_channels=1)
        >>> net(torch.ones(2, 1, 8, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        candidates: Mapping[str, Sequence[Sequence[str]]],
        *,
        channels: int,
        cells: int,
        num_classes: int,
        in_channels: int = 3,
        multiplier: int | None = None,
        stem: str = "cifar",
        track_running_stats: bool = False,
    ) -> None:
        super().__init__(candidates)
        self.sizes = {
            "channels": channels,
            "cells": cells,
            "num_classes": num_classes,
            "in_channels": in_channels,
            "stem": stem,
            "track_running_stats": track_running_stats,
        }
        self.stem = Stem(stem, in_channels, 3 * channels, track_running_stats)
        previous = (3 * channels, 3 * channels)
        previous_reduction = stem == "imagenet"
        self.cells = nn.ModuleList()
        self.tables: list[str] = []
        for index in range(cells):
            reduction = index in reduction_cells(cells)
            channels *= 2 if reduction else 1
            self.tables.append("reduce" if reduction else "normal")
            cell = Cell(
                self.candidates[self.tables[-1]],
                previous_channels=previous,
                channels=channels,
                reduction=reduction,
                previous_reduction=previous_reduction,
                multiplier=multiplier,
                track_running_stats=track_running_stats,
            )
            self.cells.append(cell)
            previous = (previous[1], cell.multiplier * channels)
            previous_reduction = reduction
        self.classifier = nn.Linear(previous[1], num_classes)

    def placed_edges(self) -> Iterator[tuple[str, int, MixedOp]]:
        """Yield every mixed operation with the table and the row whose weights it takes."""
        for cell, table in zip(self.cells, self.tables, strict=True):
            for row, edge in enumerate(cell.edges):
                yield table, row, edge

    def mix(self, x: Tensor, gates: Mapping[str, GateOutput]) -> Tensor:
        """Return the class logits under the given gates."""
        served = is_served(x, x)
        s0, s1 = self.stem(_channels_last(x) if served else x)
        if served:
            # The layout of fused nodes: taken on here, it stays through all cells. An image of one
            # channel has both layouts, and the stem may choose the other one.
            s0, s1 = (_channels_last(s0),) * 2 if s0 is s1 else map(_channels_last, (s0, s1))
        for cell, table in zip(self.cells, self.tables, strict=True):
            s0, s1 = s1, cell(s0, s1, gates[table])
        return self.classifier(s1.mean((2, 3)))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)

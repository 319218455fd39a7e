"""Layered left-to-right drawing of a small directed acyclic graph: where each box goes.

States stand in even columns, operation labels in odd ones, and an edge that passes a column
gets a slot of its own there. Boxes and lines of one column therefore never overlap, and between
two columns there is nothing but lines. Everything is deterministic.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Item", "Layout", "lay_out"]

ROW_GAP = 14.0  # free height between two neighbours of a column
COLUMN_GAP = 30.0  # free width between two columns, where lines bend
SWEEPS = 24  # rounds of ordering and of straightening; both settle long before


@dataclass
class Item:
    """A box (state or label) or, with zero size, the slot of a passing edge."""

    column: int
    width: float = 0.0
    height: float = 0.0
    x: float = 0.0  # centre
    y: float = 0.0  # centre
    before: list["Item"] = field(default_factory=list, repr=False)
    after: list["Item"] = field(default_factory=list, repr=False)

    @property
    def is_slot(self) -> bool:
        """Whether this is only the place where an edge passes a column."""
        return self.width == 0


@dataclass(frozen=True)
class Layout:
    """The placed boxes, and for each edge the items it runs through."""

    states: Mapping[int, Item]
    routes: Sequence[Sequence[Item]]
    bounds: Sequence[tuple[float, float]]  # left and right of each column
    width: float
    height: float


def lay_out(
    edges: Sequence[tuple[int, int, float]],
    state_sizes: Mapping[int, tuple[float, float]],
    *,
    label_height: float,
) -> Layout:
    """Place states and edge labels.

    Args:
        edges: Source state, target state and label width of each edge; width 0 means no label.
        state_sizes: Width and height of the box of each state.
        label_height: Height of every label.

    Returns:
        Positions with the origin at the upper left corner, in the units of the sizes.

    Raises:
        ValueError: If the edges close a cycle.

    Example:
        >>> plan = lay_out([(0, 1, 80.0)], {0: (40.0, 30.0), 1: (40.0, 30.0)}, label_height=20.0)
        >>> [round(item.x) for item in plan.routes[0]]
        [20, 111, 202]
    """
    layer = _layers(edges, state_sizes)
    states = {state: Item(2 * layer[state], *size) for state, size in sorted(state_sizes.items())}
    columns: list[list[Item]] = [[] for _ in range(2 * max(layer.values()) + 1)]
    for item in states.values():
        columns[item.column].append(item)
    routes = _route(edges, states, columns, label_height)
    _order(columns)
    height = _place_rows(columns)
    bounds = _place_columns(columns)
    return Layout(states, routes, bounds, bounds[-1][1], height)


def _layers(
    edges: Sequence[tuple[int, int, float]], states: Mapping[int, object]
) -> dict[int, int]:
    """Longest path from a state without incoming edges."""
    layer = dict.fromkeys(states, 0)
    for _ in range(len(layer) + 1):
        changed = False
        for source, target, _width in edges:
            if layer[target] <= layer[source]:
                layer[target], changed = layer[source] + 1, True
        if not changed:
            return layer
    raise ValueError("lay_out: edges must not close a cycle")


def _route(
    edges: Sequence[tuple[int, int, float]],
    states: Mapping[int, Item],
    columns: list[list[Item]],
    label_height: float,
) -> list[list[Item]]:
    labels_in = [0] * len(columns)
    label_column: dict[int, int] = {}
    # Short edges have no choice of column, so they choose first; long ones then even things out.
    by_span = sorted(
        (states[target].column - states[source].column, index)
        for index, (source, target, _width) in enumerate(edges)
    )
    for _span, index in by_span:
        source, target, width = edges[index]
        if width > 0:
            odd = range(states[source].column + 1, states[target].column, 2)
            chosen = min(odd, key=lambda column: (labels_in[column], -column))
            labels_in[chosen] += 1
            label_column[index] = chosen
    routes = []
    for index, (source, target, width) in enumerate(edges):
        route = [states[source]]
        for column in range(states[source].column + 1, states[target].column):
            is_label = column == label_column.get(index)
            item = Item(column, width, label_height) if is_label else Item(column)
            columns[column].append(item)
            route.append(item)
        route.append(states[target])
        for first, second in itertools.pairwise(route):
            first.after.append(second)
            second.before.append(first)
        routes.append(route)
    return routes


def _order(columns: list[list[Item]]) -> None:
    """Order each column so that few lines cross: barycentres, then swaps of neighbours."""
    best, fewest = [list(column) for column in columns], _crossings(columns)
    for sweep in range(SWEEPS):
        forwards = sweep % 2 == 0
        for column in columns if forwards else reversed(columns):
            rank = {id(item): place for other in columns for place, item in enumerate(other)}

            def centre(item: Item, rank: Mapping[int, int] = rank, back: bool = forwards) -> float:
                near = item.before if back else item.after
                if not near:
                    return rank[id(item)]
                return sum(rank[id(other)] for other in near) / len(near)

            column.sort(key=centre)
        _swap_neighbours(columns)
        if (count := _crossings(columns)) < fewest:
            best, fewest = [list(column) for column in columns], count
    for column, chosen in zip(columns, best, strict=True):
        column[:] = chosen


def _swap_neighbours(columns: list[list[Item]]) -> None:
    for number, column in enumerate(columns):
        around = columns[max(0, number - 1) : number + 2]
        for place in range(len(column) - 1):
            before = _crossings(around)
            column[place], column[place + 1] = column[place + 1], column[place]
            if _crossings(around) >= before:
                column[place], column[place + 1] = column[place + 1], column[place]


def _crossings(columns: Sequence[Sequence[Item]]) -> int:
    count = 0
    for left, right in itertools.pairwise(columns):
        rank = {id(item): place for place, item in enumerate(right)}
        lines = [
            (place, rank[id(other)])
            for place, item in enumerate(left)
            for other in item.after
            if id(other) in rank
        ]
        for index, (start, end) in enumerate(lines):
            count += sum((start - s) * (end - e) < 0 for s, e in lines[:index])
    return count


def _place_rows(columns: list[list[Item]]) -> float:
    """Choose heights: each item near its neighbours, the order and the gaps kept."""
    for column in columns:
        y = 0.0
        for item in column:
            item.y = y + item.height / 2
            y += item.height + ROW_GAP
        for item in column:
            item.y -= (y - ROW_GAP) / 2
    for sweep in range(SWEEPS):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            _straighten(column)
    top = min(item.y - item.height / 2 for column in columns for item in column)
    for column in columns:
        for item in column:
            item.y -= top
    return max(item.y + item.height / 2 for column in columns for item in column)


def _straighten(column: list[Item]) -> None:
    """Move the items of a column to the least-squares positions that keep order and gaps.

    Subtracting the smallest allowed distances turns the gaps into an order constraint, which
    pooling adjacent violators solves exactly.
    """
    offsets = [0.0]
    for upper, lower in itertools.pairwise(column):
        offsets.append(offsets[-1] + (upper.height + lower.height) / 2 + ROW_GAP)
    pools: list[tuple[float, float, int]] = []  # weighted sum, weight, members
    for item, offset in zip(column, offsets, strict=True):
        near = item.before + item.after
        # A line that passes several columns should pass them straight.
        pull = [8.0 if item.is_slot and other.is_slot else 1.0 for other in near]
        weight = sum(pull) or 1.0
        wanted = sum(p * other.y for p, other in zip(pull, near, strict=True)) / weight
        wanted = wanted if near else item.y
        pools.append((weight * (wanted - offset), weight, 1))
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] >= pools[-1][0] * pools[-2][1]:
            total, weight, members = pools.pop()
            upper = pools.pop()
            pools.append((upper[0] + total, upper[1] + weight, upper[2] + members))
    place = 0
    for total, weight, members in pools:
        for _ in range(members):
            column[place].y = total / weight + offsets[place]
            place += 1


def _place_columns(columns: list[list[Item]]) -> list[tuple[float, float]]:
    bounds, left = [], 0.0
    for place, column in enumerate(columns):
        right = left + max((item.width for item in column), default=0.0)
        for item in column:
            item.x = (left + right) / 2
            # Boxes of a column share one width: a line that bends towards a narrower box would
            # cut the corner of a wider neighbour.
            item.width = 0.0 if item.is_slot else right - left
        bounds.append((left, right))
        lines = sum(len(item.after) for item in column)
        crossings = _crossings(columns[place : place + 2])
        left = right + min(2.2, 1 + 0.04 * (lines + crossings)) * COLUMN_GAP * (right > left)
    return bounds

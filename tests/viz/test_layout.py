"""Placing boxes: layers, order, gaps."""

import itertools

import pytest

from pyfast_nas.viz.layout import COLUMN_GAP, ROW_GAP, lay_out


def sizes(count):
    return dict.fromkeys(range(count), (40.0, 30.0))


def test_states_stand_in_the_order_of_the_longest_path():
    plan = lay_out([(0, 1, 50.0), (1, 2, 50.0), (0, 2, 50.0)], sizes(3), label_height=20)
    assert [plan.states[state].column for state in range(3)] == [0, 2, 4]
    # A long edge passes the column of state 1 in a slot of its own.
    assert [item.is_slot for item in plan.routes[2]].count(True) == 2


def test_neighbours_of_a_column_keep_their_distance():
    edges = [(0, target, 60.0) for target in (1, 2, 3, 4)]
    plan = lay_out(edges, sizes(5), label_height=20)
    for items in ([plan.states[state] for state in range(1, 5)], [r[1] for r in plan.routes]):
        items.sort(key=lambda item: item.y)
        for upper, lower in itertools.pairwise(items):
            assert lower.y - upper.y >= (upper.height + lower.height) / 2 + ROW_GAP - 1e-6
    for left, right in itertools.pairwise(plan.bounds):
        assert right[0] - left[1] >= COLUMN_GAP


def test_lines_do_not_cross_needlessly():
    # Listed crosswise; drawn straight, no two lines cross.
    plan = lay_out([(0, 3, 50.0), (1, 2, 50.0)], sizes(4), label_height=20)
    above = plan.states[0].y < plan.states[1].y
    assert (plan.states[3].y < plan.states[2].y) == above


def test_a_cycle_is_refused():
    with pytest.raises(ValueError, match="must not close a cycle"):
        lay_out([(0, 1, 50.0), (1, 0, 50.0)], sizes(2), label_height=20)

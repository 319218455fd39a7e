"""Derived networks: plain layers, drop-path, the auxiliary head, export without this package."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from pyfast_nas.errors import SearchSpaceError
from pyfast_nas.nn.network import AuxiliaryHead, CellNetwork, DerivedCell
from pyfast_nas.spaces import DARTS, DARTS_V1, DARTS_V2, Genotype, GenotypeEdge


def images(side=8, batch=4):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def build(genotype=DARTS_V2, **sizes):
    sizes = {"channels": 4, "cells": 3, "generator": torch.Generator().manual_seed(0)} | sizes
    return DARTS().build(genotype, **sizes)


def test_layers_are_plain():
    for module in build().modules():
        assert type(module).__module__.startswith(("torch.nn", "pyfast_nas.nn"))
        assert not list(module.named_buffers(recurse=False)) or isinstance(module, nn.BatchNorm2d)


def test_pools_stand_alone_and_norms_learn():
    net = build()
    reduce = net.cells[1]
    assert [type(op) for op in reduce.ops[:2]] == [nn.MaxPool2d, nn.MaxPool2d]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(norm.affine and norm.track_running_stats for norm in norms)


def test_names_are_stable():
    names = list(build(auxiliary=True).state_dict())
    assert names[:3] == ["stem.stem0.0.weight", "stem.stem0.1.weight", "stem.stem0.1.bias"]
    assert "cells.0.preprocess0.1.weight" in names
    assert "cells.2.preprocess0.conv1.weight" in names
    assert "cells.0.ops.0.1.weight" in names
    assert "auxiliary.10.weight" in names
    assert names[-2:] == ["classifier.weight", "classifier.bias"]


def test_initial_values_come_from_the_generator():
    state = torch.get_rng_state()
    first, second = build(), build()
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    other = build(generator=torch.Generator().manual_seed(1))
    assert not torch.equal(other.classifier.weight, first.classifier.weight)


def test_auxiliary_logits_in_training_only():
    net = build(auxiliary=True)
    x = images(32)
    logits, auxiliary = net(x)
    assert logits.shape == auxiliary.shape == (4, 10)
    (logits.sum() + auxiliary.sum()).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert net.eval()(x).shape == (4, 10)
    assert build()(x).shape == (4, 10)


def test_auxiliary_head_needs_room():
    with pytest.raises(SearchSpaceError, match="auxiliary must be off for images below 32"):
        DARTS(image_size=16).build(DARTS_V1, channels=4, cells=3, auxiliary=True)
    with pytest.raises(SearchSpaceError, match=r"at least 8 x 8 .* got 4 x 4"):
        AuxiliaryHead(3, 10)(torch.ones(2, 3, 4, 4))
    assert AuxiliaryHead(3, 10)(torch.ones(2, 3, 8, 8)).shape == (2, 10)
    assert AuxiliaryHead(3, 10, imagenet=True)(torch.ones(2, 3, 7, 7)).shape == (2, 10)


def test_imagenet_network():
    space = DARTS(stem="imagenet", image_size=224, num_classes=7)
    net = space.build(DARTS_V1, channels=4, cells=5, auxiliary=True)
    logits, auxiliary = net(images(224, batch=2))
    assert logits.shape == auxiliary.shape == (2, 7)


def drop_path_cell():
    edges = [(0, 2, "skip_connect"), (1, 2, "max_pool_3x3")]
    return DerivedCell(edges, (2,), previous_channels=(3, 3), channels=4)


def test_drop_path_drops_whole_samples_but_no_identity():
    torch.manual_seed(0)
    cell = drop_path_cell()
    x = images(8, batch=512)
    states = cell.preprocess0(x), cell.preprocess1(x)
    identity, pooled = states[0], cell.ops[1](states[1])
    y = cell(x, x, 0.25)
    dropped = torch.isclose(y, identity, atol=1e-5).flatten(1).all(1)
    kept = torch.isclose(y, identity + pooled / 0.75, atol=1e-4).flatten(1).all(1)
    assert bool((dropped ^ kept).all())
    # 512 draws at 0.25: five standard deviations are 0.096.
    assert abs(dropped.float().mean() - 0.25) < 0.096


def test_drop_path_switches_off():
    cell = drop_path_cell()
    x = images()
    torch.testing.assert_close(cell(x, x, 0.0), cell(x, x), rtol=0, atol=0)
    cell.eval()
    torch.testing.assert_close(cell(x, x, 0.9), cell(x, x), rtol=0, atol=0)


def test_drop_path_is_set_on_the_network():
    net = build(drop_path=0.5)
    assert net.drop_path == 0.5
    torch.manual_seed(0)
    first = net(images())
    net.drop_path = 0.0
    assert not torch.allclose(first, net(images()))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"channels": 0}, "channels must be an integer at least 1, got 0"),
        ({"cells": 2.0}, "cells must be an integer at least 1, got 2.0"),
        ({"drop_path": 1.0}, "drop_path must be from 0 to below 1"),
        ({"drop_path": float("nan")}, "drop_path must be from 0 to below 1"),
    ],
)
def test_size_refusals(sizes, words):
    with pytest.raises(SearchSpaceError, match=words):
        build(**sizes)


RELOAD = """
import sys
sys.modules["pyfast_nas"] = None  # importing it raises, installed or not
import torch
net = torch.export.load(sys.argv[1]).module()
case = torch.load(sys.argv[2], weights_only=True)
for x, want in case:
    assert torch.equal(net(x), want), (net(x) - want).abs().max()
try:
    import pyfast_nas
except ImportError:
    print("equal without the package")
"""


@pytest.mark.promise("R4")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_exported_network_runs_without_the_package(tmp_path):
    net = build(DARTS_V1, cells=2, auxiliary=True)
    for _ in range(2):
        net(images(32))  # running statistics away from their start
    net.eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(net, (images(),), dynamic_shapes=({0: batch},))
    assert not [node for node in program.graph.nodes if "pyfast_nas" in str(node.target)]
    torch.export.save(program, tmp_path / "net.pt2")
    with torch.no_grad():
        cases = [(x, net(x)) for x in (images(), images(batch=7))]
    torch.save(cases, tmp_path / "cases.pt")
    done = subprocess.run(
        [sys.executable, "-I", "-c", RELOAD, tmp_path / "net.pt2", tmp_path / "cases.pt"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal without the package"


DESCRIBE = """
import sys
from pyfast_nas.spaces import DARTS, Genotype
net = DARTS().build(Genotype.load(sys.argv[1]), channels=4, cells=3)
print(*((name, list(value.shape)) for name, value in net.state_dict().items()), sep="\\n")
"""


@pytest.mark.promise("R2")
def test_same_genotype_same_network_in_another_process(tmp_path, monkeypatch):
    DARTS_V1.save(tmp_path / "genotype.json")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE, tmp_path / "genotype.json"],
        capture_output=True,
        text=True,
        check=True,
    )
    here = [(name, list(value.shape)) for name, value in build(DARTS_V1).state_dict().items()]
    assert done.stdout.splitlines() == [str(line) for line in here]


def test_a_node_may_be_reached_from_any_earlier_one():
    edges = (GenotypeEdge(0, 2, "skip_connect"), GenotypeEdge(1, 2, "skip_connect"))
    genotype = Genotype(
        "darts", {"normal": edges, "reduce": edges}, dict.fromkeys(("normal", "reduce"), (2,))
    )
    net = DARTS(nodes=1).build(genotype, channels=4, cells=2)
    assert isinstance(net, CellNetwork)
    assert net(images()).shape == (4, 10)

"""Published latencies of layers: hand-computed sums, and broken files."""

import csv
import os

import pytest
import torch

from pyfast_nas.costs import CostTable, LatencyLookup
from pyfast_nas.costs.lookup import LayerKey
from pyfast_nas.errors import DataError
from pyfast_nas.spaces import PROXYLESS_GPU, ProxylessNAS

HEADER = "op,input,output,expand,kernel,stride,idskip,mean_ms"
FIXED = (
    "Conv,16x16x3,8x8x32,,,,,1.0",
    "expanded_conv,8x8x32,8x8x16,1,3,1,0,2.0",
    "Conv_1,4x4x24,4x4x1280,,,,,4.0",
    "Logits,4x4x1280,7,,,,,8.0",
)
# One block that halves the image and one with a shortcut; a candidate costs 10 k + e, thrice here.
CHOSEN = [
    f"expanded_conv,{shapes},{e},{k},{stride},{skip},{(10 * k + e) * (1 if stride == 2 else 3)}"
    for shapes, stride, skip in (("8x8x16,4x4x24", 2, 0), ("4x4x24,4x4x24", 1, 1))
    for k in (3, 5, 7)
    for e in (3, 6)
]
SPACE = ProxylessNAS(
    widths=(24,), blocks=(2,), strides=(2,), stem_stride=2, image_size=16, num_classes=7
)


def write(path, *lines, header=HEADER):
    path.write_text("\n".join((header, *lines)) + "\n")
    return path


def test_costs_of_a_small_chain(tmp_path):
    table = LatencyLookup.read(write(tmp_path / "t.csv", *FIXED, *CHOSEN)).costs(SPACE)
    assert (table.unit, table.fixed) == ("ms", 15.0)
    row = [33.0, 36, 53, 56, 73, 76]
    want = [[*row, 0], [*(3 * cost for cost in row), 0]]
    assert table.rows["blocks"].tolist() == want
    # Uniform: a sixth of 327 without `zero`, a seventh of 981 with it.
    weights = {"blocks": torch.tensor([[1 / 6] * 6 + [0], [1 / 7] * 7], dtype=torch.float64)}
    assert table.expected(weights).item() == pytest.approx(15 + 54.5 + 981 / 7, rel=1e-12)
    genotype = SPACE.from_operations(["mbconv_5x5_e6", "zero"])
    assert table.of(genotype, SPACE.candidates) == 15 + 56
    genotype = SPACE.from_operations(["mbconv_3x3_e3", "mbconv_7x7_e3"])
    assert table.of(genotype, SPACE.candidates) == 15 + 33 + 219


def test_order_of_lines_and_columns_does_not_count(tmp_path):
    lines = [",".join(reversed(line.split(","))) for line in reversed((*FIXED, *CHOSEN))]
    header = ",".join(reversed(HEADER.split(",")))
    swapped = LatencyLookup.read(write(tmp_path / "a.csv", *lines, header=header))
    straight = LatencyLookup.read(write(tmp_path / "b.csv", *FIXED, *CHOSEN))
    assert swapped.milliseconds == straight.milliseconds


def test_a_table_for_a_search(tmp_path):
    """What a search takes is the JSON of the costs."""
    table = LatencyLookup.read(write(tmp_path / "t.csv", *FIXED, *CHOSEN)).costs(SPACE)
    table.save(tmp_path / "costs.json")
    again = CostTable.load(tmp_path / "costs.json")
    assert torch.equal(again.rows["blocks"], table.rows["blocks"]) and again.fixed == 15.0
    assert again.candidates == dict(SPACE.candidates) and "look-up table" in again.about


@pytest.mark.parametrize("lost", [0, 1, 2, 3, 4 + 2, 4 + 11])
def test_a_missing_layer_is_named(tmp_path, lost):
    lines = [*FIXED, *CHOSEN]
    op, start, end, *numbers = lines.pop(lost).split(",")[:7]
    key = f"{op}-input:{start}-output:{end}"
    if numbers[0]:
        parts = zip(("expand", "kernel", "stride", "idskip"), numbers, strict=True)
        key += "".join(f"-{name}:{number}" for name, number in parts)
    lookup = LatencyLookup.read(write(tmp_path / "t.csv", *lines))
    with pytest.raises(DataError) as error:
        lookup.costs(SPACE)
    assert f"must hold the layer {key!r}, got 15 other layers" in str(error.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (FIXED[0], "line 6 repeats the layer 'Conv-input:16x16x3-output:8x8x32'"),
        ("Conv,a,b", "line 6 must have 8 fields"),
        ("Conv,a,b,,,,,1,2", "line 6 must have 8 fields"),
        ("Conv,a,b,,,,,fast", "line 6: mean_ms of 'Conv-input:a-output:b' must be a finite number"),
        ("Conv,a,b,,,,,nan", "line 6: mean_ms .* got 'nan'"),
        ("Conv,a,b,,,,,-1", "line 6: mean_ms .* at least 0, got '-1'"),
        ("Conv,a,b,,,,,", "line 6: mean_ms .* got ''"),
        (
            "Conv,a,b,3.5,3,1,0,1",
            r"line 6: expand, kernel, stride, idskip must be integers",
        ),
        ('Conv,"a,b', "must be comma-separated text"),
    ],
)
def test_broken_lines(tmp_path, line, words):
    with pytest.raises(DataError, match=words):
        LatencyLookup.read(write(tmp_path / "t.csv", *FIXED, line))


def test_broken_files(tmp_path):
    with pytest.raises(DataError, match="line 1 must name the column 'stride'"):
        LatencyLookup.read(write(tmp_path / "t.csv", header=HEADER.replace("stride", "step")))
    with pytest.raises(DataError, match="must name the column 'op'"):
        LatencyLookup.read(write(tmp_path / "t.csv", header=""))
    (tmp_path / "t.csv").write_bytes(b"op,\xff\n")
    with pytest.raises(DataError, match="must be text: byte 3 is not UTF-8"):
        LatencyLookup.read(tmp_path / "t.csv")
    os.mkfifo(tmp_path / "pipe")
    for device in ("/dev/zero", tmp_path / "pipe"):
        with pytest.raises(DataError, match="must be a regular file"):
            LatencyLookup.read(device)
    (tmp_path / "t.csv").write_text(HEADER + "\n" * (1 << 20))
    with pytest.raises(DataError, match="must be at most 1048576 bytes long"):
        LatencyLookup.read(tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"no.csv' cannot be read: No such file"):
        LatencyLookup.read(tmp_path / "no.csv")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        LatencyLookup.read(tmp_path)


class TestPublished:
    @pytest.fixture
    def path(self, real_data):
        return real_data / "nas" / "proxylessnas_mobile_latency.csv"

    @pytest.fixture
    def space(self):
        return ProxylessNAS(num_classes=1000, image_size=224)

    def test_expected_latency_of_uniform_probabilities(self, path, space):
        """Against sums over the lines of the file, told apart by their shapes alone."""
        sums = {}
        with open(path) as file:
            for line in csv.DictReader(file):
                if line["expand"] != "1":
                    place = line["input"], line["output"]
                    sums[place] = sums.get(place, 0.0) + float(line["mean_ms"])
                elif line["kernel"] == "3":
                    first = float(line["mean_ms"])
        ends = [sums.pop(place) for place in list(sums) if place[0] in ("224x224x3", "7x7x320")]
        ends.append(sums.pop(("7x7x1280", "1000")))
        assert len(ends) == 3 and len(sums) == 11
        # Six places change shape, five stand for three blocks with a shortcut and seven candidates.
        want = (
            first
            + sum(ends)
            + sum(
                3 * total / 7 if place[0] == place[1] else total / 6
                for place, total in sums.items()
            )
        )
        table = LatencyLookup.read(path).costs(space)
        lengths = torch.tensor([len(row) for row in space.candidates["blocks"]])[:, None]
        weights = (torch.arange(7) < lengths).double() / lengths
        assert table.expected({"blocks": weights}).item() == pytest.approx(want, rel=1e-12)
        assert want == pytest.approx(113.98807, abs=1e-4)

    def test_latency_of_chains(self, path, space):
        table = LatencyLookup.read(path).costs(space)
        shortest = space.from_operations(
            ["zero" if row % 4 else "mbconv_3x3_e3" for row in range(21)]
        )
        longest = space.from_operations(["mbconv_7x7_e6"] * 21)
        latencies = [
            table.of(genotype, space.candidates) for genotype in (shortest, PROXYLESS_GPU, longest)
        ]
        lookup = LatencyLookup.read(path).milliseconds
        halving = LayerKey("expanded_conv", "112x112x16", "56x56x24", 3, 5, 2, 0)
        assert table.rows["blocks"][0, 2] == lookup[halving] == 7.51911
        assert latencies == sorted(latencies)
        assert latencies[1] == pytest.approx(65.845842, abs=1e-6)

    def test_other_sizes_were_not_measured(self, path, space):
        lookup = LatencyLookup.read(path)
        for changed, words in (
            (space.with_data(3, 10, 224), "'Logits-input:7x7x1280-output:10'"),
            (space.with_data(3, 1000, 192), "'Conv-input:192x192x3-output:96x96x32'"),
            (ProxylessNAS(width="gpu", num_classes=1000, image_size=224), "112x112x40'"),
        ):
            with pytest.raises(DataError, match=f"must hold the layer .*{words}"):
                lookup.costs(changed)

"""A search that ends in a table of accuracies and costs."""

import copy
import dataclasses
import json

import pytest
import torch

from pyfast_nas import spaces
from pyfast_nas.algorithms import DARTS, MSGDAS, RandomSearch
from pyfast_nas.algorithms.cost_aware import CostAware
from pyfast_nas.costs import CostTable, count, pareto_front
from pyfast_nas.data import DeviceLoader, synthetic_images
from pyfast_nas.engine import search
from pyfast_nas.engine.course import Course
from pyfast_nas.engine.pareto import draw_genotypes, pareto_record, shared_accuracies
from pyfast_nas.errors import ConfigError, DataError
from pyfast_nas.nn import GateOutput
from pyfast_nas.spaces import AccuracyTable, Genotype
from pyfast_nas.spaces.choices import choices_of
from tests.tables import write_table

SPACE = spaces.NASBench201(channels=2, cells=1)
DATA = synthetic_images(64, size=8)


@dataclasses.dataclass(kw_only=True, eq=False)
class Priced(CostAware, DARTS):
    """A search that knows what its candidates cost."""


def run(**options):
    options = {"epochs": 2, "batch_size": 8, "compare": 0} | options
    own = getattr(options.get("algorithm"), "cost", "none")
    if options.get("pareto_cost", own) != "none":
        options.setdefault("pareto_samples", 8)
    return search(options.pop("space", SPACE), options.pop("data", DATA), **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    return run(pareto_cost="parameters", pareto_images=24, output=folder), folder


def test_every_architecture_has_its_accuracy_and_its_cost(finished):
    result, folder = finished
    record = json.loads((folder / "pareto.json").read_text())
    assert record == result.pareto
    assert record["unit"] == "parameters" and record["images"] == 24
    costs = count(result.space.supernet(), (1, 3, 8, 8))["parameters"]
    rows = record["architectures"]
    for row in rows:
        genotype = Genotype.from_dict(row["genotype"])
        assert row["hash"] == genotype.hash
        assert row["cost"] == costs.of(genotype, SPACE.candidates)
        assert row["accuracy"] * 24 == pytest.approx(round(row["accuracy"] * 24))
    assert len({row["hash"] for row in rows}) == len(rows)
    assert [row["cost"] for row in rows] == sorted(row["cost"] for row in rows)
    on_front = pareto_front([row["cost"] for row in rows], [row["accuracy"] for row in rows])
    assert [row["on_front"] for row in rows] == on_front


def test_what_was_found_what_epochs_derived_and_what_was_drawn(finished):
    result, _ = finished
    rows = {row["hash"]: row for row in result.pareto["architectures"]}
    (final,) = [row for row in rows.values() if row["source"] == "final"]
    assert final["hash"] == result.genotype.hash and 2 in final["epochs"]
    assert sorted(epoch for row in rows.values() for epoch in row["epochs"]) == [1, 2]
    drawn = [row for row in rows.values() if row["source"] == "sample"]
    assert len(drawn) == 8 and not any(row["epochs"] for row in drawn)


def test_it_is_the_same_again_and_changes_nothing_of_the_search(finished):
    result, folder = finished
    options = {"pareto_cost": "parameters", "pareto_images": 24}
    assert run(**options).pareto == result.pareto
    assert run(**options, seed=1).pareto != result.pareto
    alone = run()
    assert alone.pareto is None and alone.genotype == result.genotype
    assert alone.history == result.history
    measured = run(pareto_cost="latency", pareto_samples=0)
    assert measured.history == result.history and measured.pareto["unit"] == "ms"
    assert measured.pareto["about"] == "batch of 24, cpu, 8x8x3" and "about" not in result.pareto
    phases = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    assert [row["phase"] for row in phases if row["kind"] == "total"] == ["search", "pareto"]


def test_evaluation_does_not_hang_on_it():
    options = {"epochs": 0, "compare": 1, "compare_seeds": 1, "train_epochs": 1, "seed": 3}
    options |= {"train_channels": 2, "train_batch_size": 32}
    with_it, without = run(**options, pareto_cost="parameters"), run(**options)
    assert with_it.evaluation == without.evaluation
    assert [r["source"] for r in with_it.pareto["architectures"]].count("final") == 1


def test_the_costs_of_the_algorithm_serve_by_default(tmp_path):
    path = tmp_path / "costs.json"
    CostTable("mJ", 1.0, {"cell": torch.rand(6, 5)}).save(path)
    options = {"epochs": 0, "algorithm": Priced(cost="multiply-adds")}
    assert run(**options).pareto["unit"] == "multiply-adds"
    assert run(**options, pareto_cost=path).pareto["unit"] == "mJ"
    assert run(**options, pareto_cost="none").pareto is None
    assert run(epochs=0, algorithm=Priced()).pareto is None


@pytest.mark.parametrize(
    "algorithm", [MSGDAS(), RandomSearch(samples=4)], ids=["msg-das", "random"]
)
def test_any_search_can_be_judged(algorithm):
    space = spaces.DARTS(channels=2, cells=2, nodes=2)
    result = run(space=space, algorithm=algorithm, epochs=1, pareto_cost="multiply-adds")
    rows = result.pareto["architectures"]
    assert 8 < len(rows) <= 10 and any(row["on_front"] for row in rows)
    for row in rows:
        space.check(Genotype.from_dict(row["genotype"]))


def test_without_a_cost_there_is_no_file(tmp_path):
    run(epochs=0, output=tmp_path / "a")
    assert not list((tmp_path / "a").glob("pareto*"))


def test_published_test_accuracies_stand_beside_the_scores(tmp_path):
    path = write_table(tmp_path / "cells.csv")
    record = run(epochs=1, table=path, pareto_cost="parameters").pareto
    table = AccuracyTable.read(path)
    assert record["column"] == "c10_test_e200"
    for row in record["architectures"]:
        genotype = Genotype.from_dict(row["genotype"])
        assert row["test"] == table.lookup(genotype)["c10_test_e200"]


def test_refusals_come_before_anything_is_written(tmp_path):
    other = tmp_path / "costs.json"
    CostTable("ms", 1.0, {"cell": torch.rand(2, 4)}).save(other)
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    for options, error, words in (
        ({"pareto_cost": "flops"}, ConfigError, "search: pareto_cost must be one of .*'flops'"),
        ({"pareto_cost": other}, ConfigError, "search: pareto_cost must be a table .*2, 4"),
        ({"pareto_cost": broken}, DataError, "format must be"),
        ({"pareto_samples": 3}, ConfigError, "pareto_samples must be 32 with no cost, where"),
        ({"pareto_images": 64, "pareto_cost": "none"}, ConfigError, "pareto_images must be 1024"),
        ({"pareto_samples": -1}, ConfigError, "pareto_samples must be an integer at least 0"),
        ({"pareto_images": 0}, ConfigError, "pareto_images must be an integer at least 1"),
    ):
        with pytest.raises(error, match=words):
            run(**options, output=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def loader_of(data=DATA, batch_size=8):
    draws = torch.Generator().manual_seed(0)
    return DeviceLoader(data, batch_size, augment=True, generator=draws)


class TestScores:
    """Accuracies with shared weights, and what scoring leaves behind: nothing."""

    @pytest.mark.parametrize(
        "space",
        [
            SPACE,
            dataclasses.replace(SPACE, track_running_stats=True),
            spaces.DARTS(channels=2, cells=2, nodes=2, image_size=8),
            spaces.DARTS(channels=2, cells=2, nodes=2, image_size=8, edges="all"),
        ],
        ids=["nas-bench-201", "running statistics", "darts", "all edges"],
    )
    def test_they_are_those_of_the_super_net_with_every_other_weight_zero(self, space):
        supernet = space.supernet(torch.Generator().manual_seed(1))
        batches = loader_of().valid.plain_batches(3, torch.Generator().manual_seed(2))
        draws = torch.Generator().manual_seed(3)
        genotypes = [space.random_genotype(draws) for _ in range(6)]
        whole = copy.deepcopy(supernet)
        wanted = []
        for genotype in genotypes:
            choices = choices_of(genotype, space.candidates)
            gates = {table: GateOutput(flags.float()) for table, flags in choices.items()}
            hits = [(whole(x, gates).argmax(1) == labels).sum() for x, labels in batches]
            wanted.append(int(sum(hits)) / 24)
        assert shared_accuracies(genotypes, supernet, batches) == wanted
        assert len(set(wanted)) > 1

    def test_nothing_moves(self):
        space = dataclasses.replace(SPACE, track_running_stats=True)
        supernet, loader = space.supernet(torch.Generator().manual_seed(1)), loader_of()
        weights = copy.deepcopy(supernet.state_dict())
        modes = [module.training for module in supernet.modules()]
        place, streams = loader.state_dict(), torch.get_rng_state()
        alphas = {table: value.detach() for table, value in supernet.alphas.items()}
        record = pareto_record(
            Course([], [(space.derive(alphas), alphas)]),
            space=space,
            supernet=supernet,
            costs=count(supernet, (1, 3, 8, 8))["parameters"],
            valid=loader.valid,
            samples=4,
            images=16,
            generator=torch.Generator().manual_seed(4),
        )
        assert len(record["architectures"]) == 5
        assert torch.equal(torch.get_rng_state(), streams)
        for name, value in supernet.state_dict().items():
            assert torch.equal(value, weights[name]), name
        assert [module.training for module in supernet.modules()] == modes
        assert all(parameter.grad is None for parameter in supernet.parameters())
        now = loader.state_dict()["valid"]
        assert all(torch.equal(now[key], place["valid"][key]) for key in ("order", "draws"))
        assert now["cursor"] == place["valid"]["cursor"]

    def test_images_are_distinct_plain_and_no_more_than_there_are(self):
        valid = loader_of().valid
        batches = valid.plain_batches(len(valid), torch.Generator().manual_seed(0))
        images = torch.cat([x for x, _ in batches])
        assert len(images) == len(valid) * 8 == len({x.numpy().tobytes() for x in images})
        plain = DeviceLoader(
            DATA, 8, augment=False, generator=torch.Generator().manual_seed(0)
        ).valid
        whole = {x.numpy().tobytes() for _ in range(len(plain)) for x in plain.next()[0]}
        assert {x.numpy().tobytes() for x in images} == whole
        record = run(epochs=0, pareto_cost="parameters", pareto_samples=0).pareto
        assert record["images"] == 32 and len(record["architectures"]) == 1

    def test_what_is_not_finite_is_wrong(self):
        supernet = SPACE.supernet()
        batches = loader_of().valid.plain_batches(2, torch.Generator().manual_seed(0))
        with torch.no_grad():
            supernet.classifier.bias.fill_(torch.nan)
        labels = torch.cat([labels for _, labels in batches])
        assert (labels == 0).any()  # which an argmax among NaN would get right
        genotype = SPACE.random_genotype(torch.Generator().manual_seed(0))
        assert shared_accuracies([genotype], supernet, batches) == [0.0]


class TestDraws:
    """Architectures drawn from the final probabilities."""

    def test_they_are_distinct_and_new(self):
        alphas = {"cell": torch.zeros(6, 5)}
        seed = torch.tensor([7, 0])
        first = draw_genotypes(SPACE, alphas, 40, seed)
        assert len({genotype.hash for genotype in first}) == 40
        assert draw_genotypes(SPACE, alphas, 40, seed) == first
        assert draw_genotypes(SPACE, alphas, 5, seed, besides=first[:3]) == first[3:8]

    def test_edges_in_another_order_are_no_other_architecture(self):
        space = spaces.DARTS(nodes=1, operations=("skip_connect", "sep_conv_3x3"))
        alphas = {table: torch.zeros(2, 2) for table in ("normal", "reduce")}
        drawn = draw_genotypes(space, alphas, 100, torch.tensor([0, 0]))
        chosen = [
            tuple(flags.numpy().tobytes() for flags in choices_of(g, space.candidates).values())
            for g in drawn
        ]
        assert len(drawn) == len(set(chosen)) == 16

    def test_decided_probabilities_give_few(self):
        alphas = {"cell": torch.tensor([[100.0, 0.0, 0.0, 0.0], [0.0, 0.0, -100.0, -100.0]])}
        drawn = draw_genotypes(spaces.Toy(), alphas, 10, torch.tensor([0, 0]))
        assert len(drawn) == 2

    def test_they_follow_the_probabilities(self):
        alphas = {"cell": torch.tensor([[0.0, 1.0, -1.0, 0.5], [2.0, 0.0, 0.0, -1.0]])}
        names = spaces.Toy().candidates["cell"]
        counts = torch.zeros(2, 4)
        draws = 1500
        for seed in range(draws):
            (genotype,) = draw_genotypes(spaces.Toy(), alphas, 1, torch.tensor([seed, 0]))
            for row, edge in enumerate(genotype.cells["cell"]):
                counts[row, names[row].index(edge.op)] += 1
        wanted = alphas["cell"].softmax(1)
        error = (wanted * (1 - wanted) / draws).sqrt()
        assert ((counts / draws - wanted).abs() < 5 * error).all()

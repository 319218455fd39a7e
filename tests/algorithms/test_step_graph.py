"""Steps that are recorded and replayed: the same search, whatever records."""

import contextlib
import copy

import pytest
import torch

from pyfast_nas.algorithms import DARTS, GDAS, MSGDAS, SNAS, ProxylessNAS, StepGraph
from pyfast_nas.algorithms.base import SharedWeightSearch
from pyfast_nas.algorithms.sub_graphs import SubGraphs
from pyfast_nas.spaces import DARTS as DARTSSpace
from pyfast_nas.spaces import NASBench201
from pyfast_nas.spaces import ProxylessNAS as ProxylessNASSpace


class Again:
    """Records by keeping the function, so that a replay is a call of it."""

    def __init__(self, error: str = "") -> None:
        self.recordings, self.replays, self.warm = 0, 0, 0
        self.error = error

    @contextlib.contextmanager
    def warming_up(self):
        self.warm += 1
        yield

    def record(self, run):
        if self.error:
            raise RuntimeError(self.error)
        self.recordings += 1

        def replay():
            self.replays += 1
            return run()

        return replay


SMALL = DARTSSpace(nodes=2, channels=4, cells=3, image_size=8, num_classes=3)
STAGED = NASBench201(channels=4, cells=1, image_size=8, num_classes=3)
CHAIN = ProxylessNASSpace(
    widths=(16,),
    blocks=(2,),
    strides=(2,),
    width_factor=0.25,
    operations=("mbconv_3x3_e3", "zero", "mbconv_3x3_e6", "mbconv_5x5_e3"),
    image_size=8,
    num_classes=3,
)


def prepared(algorithm, epochs=3, steps_per_epoch=4, dtype=torch.float64, space=SMALL):
    torch.manual_seed(0)
    net = space.supernet(torch.Generator().manual_seed(0)).to(dtype)
    generator = torch.Generator().manual_seed(1)
    algorithm.prepare(
        net, space=space, epochs=epochs, steps_per_epoch=steps_per_epoch, generator=generator
    )
    return algorithm


def batches(count, size=4, dtype=torch.float64):
    draw = torch.Generator().manual_seed(2)
    return [
        tuple(
            (
                torch.randn(size, 3, 8, 8, generator=draw, dtype=dtype),
                torch.randint(3, (size,), generator=draw),
            )
            for _ in range(2)
        )
        for _ in range(count)
    ]


def state_of(algorithm):
    tensors = {**algorithm.supernet.state_dict()}
    for i, entry in enumerate(algorithm.weight_optimizer.state.values()):
        tensors[f"momentum {i}"] = entry["momentum_buffer"]
    return tensors


@pytest.mark.parametrize("search", [DARTS, lambda: SNAS(resource_weight=1.5e-3)])
def test_the_same_search_to_the_bit(search):
    plain, graphed = prepared(search()), prepared(search())
    recorder = Again()
    graph = StepGraph(graphed, recorder)
    for train, valid in batches(12):
        want, got = plain.step(train, valid), graph.step(train, valid)
        assert want.keys() == got.keys()
        assert all(torch.equal(torch.as_tensor(want[k]), torch.as_tensor(got[k])) for k in want)
    want, got = state_of(plain), state_of(graphed)
    assert want.keys() == got.keys() and all(torch.equal(want[k], got[k]) for k in want)
    assert (graphed.steps, graphed.alpha_steps) == (plain.steps, plain.alpha_steps) == (12, 12)
    # One step of the first epoch is left after the warm-up; every epoch has a recording.
    assert (recorder.warm, recorder.recordings, recorder.replays) == (3, 3, 9)
    assert not graph.reason


def test_a_state_that_is_loaded_is_recorded_anew():
    """Also where that leads back to the epoch that was recorded last."""
    plain, algorithm = prepared(DARTS()), prepared(DARTS())
    graph = StepGraph(algorithm, recorder := Again())
    first, *rest = [batches(12)[i : i + 4] for i in (0, 4, 8)]
    for train, valid in first:
        plain.step(train, valid)
        graph.step(train, valid)
    kept = copy.deepcopy((algorithm.supernet.state_dict(), algorithm.state_dict()))
    for train, valid in rest[0]:
        graph.step(train, valid)
    recordings = recorder.recordings
    algorithm.supernet.load_state_dict(kept[0])
    algorithm.load_state_dict(kept[1])
    for train, valid in rest[1]:
        plain.step(train, valid)
        graph.step(train, valid)
    assert recorder.recordings == recordings + 1
    want, got = state_of(plain), state_of(algorithm)
    assert all(torch.equal(want[k], got[k]) for k in want)


def test_a_batch_of_another_size_runs_as_it_is():
    graph = StepGraph(prepared(DARTS()), recorder := Again())
    for train, valid in [*batches(4), *batches(1, size=3), *batches(1)]:
        graph.step(train, valid)
    assert recorder.replays == 2 and not graph.reason


def test_full_batches_are_recorded_after_a_short_one():
    """The fourth step, the first after the warm-up, ends an epoch."""
    plain, algorithm = prepared(DARTS()), prepared(DARTS())
    graph = StepGraph(algorithm, recorder := Again())
    for train, valid in [*batches(3), *batches(1, size=3), *batches(3), *batches(1, size=3)]:
        plain.step(train, valid)
        graph.step(train, valid)
    assert (recorder.recordings, recorder.replays) == (2, 4) and not graph.reason
    want, got = state_of(plain), state_of(algorithm)
    assert all(torch.equal(want[k], got[k]) for k in want)


def test_a_recording_that_fails_is_told_and_costs_no_step():
    plain, algorithm = prepared(DARTS()), prepared(DARTS())
    graph = StepGraph(algorithm, Again("operation not permitted\nwhile capturing"))
    for train, valid in batches(5):
        plain.step(train, valid)
        graph.step(train, valid)
    assert graph.failed and graph.reason == "operation not permitted"
    assert algorithm.steps == 5
    want, got = state_of(plain), state_of(algorithm)
    assert all(torch.equal(want[k], got[k]) for k in want)


def test_a_supernet_that_draws_in_the_architecture_step_is_not_recorded():
    algorithm = prepared(DARTS())
    algorithm.supernet.classifier = torch.nn.Sequential(
        torch.nn.Dropout(0.5), algorithm.supernet.classifier
    )
    graph = StepGraph(algorithm, recorder := Again())
    for train, valid in batches(4):
        graph.step(train, valid)
    assert "random numbers" in graph.reason and not graph.failed
    assert recorder.recordings == 0


def test_searches_that_choose_on_the_host_say_so():
    graph = StepGraph(prepared(HostSearch()), recorder := Again())
    for train, valid in batches(4):
        graph.step(train, valid)
    assert "host" in graph.reason and recorder.warm == 0
    assert StepGraph(prepared(DARTS())).reason == "the search runs on cpu"


class HostSearch(DARTS):
    """A search that says nothing of what its steps do."""

    why_not_recorded = SharedWeightSearch.why_not_recorded


# Both warm-ups end inside of the run, in different epochs.
SAMPLED = {
    "K = 1": {"paths": 1},
    "K = 2": {"paths": 2},
    "K = 3, joint": {"paths": 3, "mode": "joint", "assignment": "shuffle"},
    "conditional": {"paths": 2, "relaxation": "conditional", "kd_in_alpha_step": True},
    "subset": {"paths": 2, "relaxation": "subset", "kd_weight": 0.0},
    "score": {"paths": 2, "relaxation": "score", "score_baseline": 0.5},
    "no guidance": {"paths": 2, "kd_weight": 0.0},
    "no DropBlock": {"paths": 2, "drop_rate": 0.0},
    "no momentum": {"paths": 1, "weight_momentum": 0.0},
    "Nesterov momentum": {"paths": 1, "weight_nesterov": True},
}


def sampled(space=SMALL, **options):
    guidance = {"kd_warmup": 0.6} if options.get("kd_weight", 1.0) else {}
    algorithm = MSGDAS(**{"alpha_warmup": 0.3, **guidance, **options})
    return prepared(algorithm, 4, 5, space=space)


# In cells of NAS-Bench-201 `none` may cut off what was drawn from the outcome.
@pytest.mark.parametrize("space", [SMALL, STAGED], ids=lambda space: space.name)
@pytest.mark.parametrize("options", SAMPLED.values(), ids=SAMPLED)
def test_a_step_that_samples_on_the_device(options, space):
    check_recorded(*(sampled(space, **options) for _ in range(2)), alpha_steps=15)


@pytest.mark.parametrize("space", [SMALL, STAGED], ids=lambda space: space.name)
@pytest.mark.parametrize("variant", ["A", "B"])
def test_a_step_of_gdas(variant, space):
    searches = (prepared(GDAS(variant=variant), 4, 5, space=space) for _ in range(2))
    check_recorded(*searches, alpha_steps=20)


@pytest.mark.parametrize("name", ["K = 1", "K = 3, joint"])
def test_a_step_that_samples_a_chain_on_the_device(name):
    """Its candidates run as modules, and its rows differ in length."""
    check_recorded(*(sampled(CHAIN, **SAMPLED[name]) for _ in range(2)), alpha_steps=15)


def check_recorded(plain, graphed, alpha_steps):
    graph = StepGraph(graphed, recorder := Again())
    for step, (train, valid) in enumerate(batches(20)):
        want, got = plain.step(train, valid), graph.step(train, valid)
        assert want.keys() == got.keys(), step
        for key, value in want.items():
            torch.testing.assert_close(got[key], value, rtol=1e-10, atol=1e-12, msg=key)
    assert not graph.reason and recorder.replays
    assert (graphed.steps, graphed.alpha_steps) == (20, alpha_steps)
    assert (plain.steps, plain.alpha_steps) == (20, alpha_steps)
    assert torch.equal(graphed.generator.get_state(), plain.generator.get_state())
    named = dict(plain.supernet.named_parameters())
    for name, got in graphed.supernet.named_parameters():
        torch.testing.assert_close(got, named[name], rtol=1e-9, atol=1e-11)
        momenta = [
            search.weight_optimizer.state.get(parameter, {}).get("momentum_buffer")
            for search, parameter in ((graphed, got), (plain, named[name]))
        ]
        if momenta[0] is not None:  # zero where no step has moved the weight
            want = torch.zeros_like(got) if momenta[1] is None else momenta[1]
            torch.testing.assert_close(momenta[0], want, rtol=1e-9, atol=1e-11)


def test_a_step_that_does_more_is_warmed_up_again():
    graph = StepGraph(sampled(), recorder := Again())
    for train, valid in batches(20):
        graph.step(train, valid)
    # Five steps an epoch; the architecture moves from the second one on, guided from the third.
    assert (recorder.warm, recorder.recordings, recorder.replays) == (9, 4, 11)


# Of thirty steps one epoch is warm-up and one rests; then every second one moves the architecture.
BINARY = {
    "two": {"gradient": "two"},
    "full": {"gradient": "full"},
    "full, again in backward": {"gradient": "full_v2"},
    "rewards": {"gradient": "reinforce", "samples": 2},
    "costs": {"gradient": "two", "cost": "parameters", "cost_form": "add-linear"},
}


@pytest.mark.parametrize("space", [SMALL, STAGED], ids=lambda space: space.name)
@pytest.mark.parametrize("options", BINARY.values(), ids=BINARY)
def test_steps_that_do_unlike_things_are_recorded_apart(options, space):
    def search():
        return prepared(ProxylessNAS(alpha_interval=2, **options), 5, 6, space=space)

    plain, graphed = search(), search()
    graph = StepGraph(graphed, recorder := Again())
    for step, (train, valid) in enumerate(batches(30)):
        want, got = plain.step(train, valid), graph.step(train, valid)
        assert want.keys() == got.keys(), step
        for key, value in want.items():
            torch.testing.assert_close(got[key], value, rtol=1e-10, atol=1e-12, msg=key)
    assert not graph.reason
    # Three steps of each kind are made as they are; weights alone are recorded in five epochs, in
    # the first after three steps; the rest of them in the fourth and fifth.
    assert (recorder.warm, recorder.recordings, recorder.replays) == (6, 7, 24)
    assert (graphed.steps, graphed.alpha_steps) == (plain.steps, plain.alpha_steps) == (30, 9)
    named = dict(plain.supernet.named_parameters())
    for name, got in graphed.supernet.named_parameters():
        # Of a pair whose gradients cancel the rounding is left, 1e-15: Adam moves by that times its
        # rate of 1e-3 over its epsilon of 1e-8.
        is_weight = "alphas" not in name
        torch.testing.assert_close(got, named[name], rtol=1e-9, atol=1e-11 if is_weight else 1e-10)
        if is_weight:
            momenta = [
                search.weight_optimizer.state[parameter]["momentum_buffer"]
                for search, parameter in ((graphed, got), (plain, named[name]))
            ]
            torch.testing.assert_close(*momenta, rtol=1e-9, atol=1e-11)


def test_the_host_never_asks_what_proxylessnas_has_drawn(monkeypatch):
    (train, valid), *_ = batches(1)
    monkeypatch.setattr(SubGraphs, "picks", property(lambda drawn: 1 / 0))
    for options in BINARY.values():
        options = {"alpha_interval": 1, "alpha_warmup": 0.0, "alpha_rest": 0, **options}
        algorithm = prepared(ProxylessNAS(**options))
        with pytest.raises(ZeroDivisionError):
            algorithm.step(train, valid)
        algorithm.run_step(train, valid)


@pytest.mark.parametrize("nesterov", [False, True])
def test_weights_of_what_was_not_drawn_stay_to_the_bit(nesterov):
    algorithm = sampled(paths=2, weight_nesterov=nesterov)
    for train, valid in batches(3):
        algorithm.start_step()
        algorithm.run_step(train, valid)
        algorithm.finish_step()
    steps, masked = [], algorithm.masked_step
    real = masked.step
    masked.step = lambda ran: (steps.append(ran.clone()), real(ran))
    before = copy.deepcopy(algorithm.supernet)
    momenta = {p: s["momentum_buffer"].clone() for p, s in momentum_states(algorithm)}
    algorithm.start_step()
    algorithm.run_step(*batches(1)[0])
    (ran,) = steps
    assert ran.sum() == 2 * len(ran)
    moved = 0
    for cell, old_cell in zip(algorithm.supernet.cells, before.cells, strict=True):
        first = 0 if cell is algorithm.supernet.cells[0] else len(ran) // 2
        for row, (edge, old_edge) in enumerate(zip(cell.edges, old_cell.edges, strict=True)):
            for index in range(edge.num_ops):
                for now, old in zip(
                    edge.candidate(index).parameters(),
                    old_edge.candidate(index).parameters(),
                    strict=True,
                ):
                    has_run = bool(ran[first + row, index])
                    buffer = algorithm.weight_optimizer.state[now]["momentum_buffer"]
                    assert torch.equal(now, old) != has_run
                    assert torch.equal(buffer, momenta[now]) != has_run
                    moved += has_run
    assert moved


def momentum_states(algorithm):
    return algorithm.weight_optimizer.state.items()


def test_the_host_never_asks_what_was_drawn(monkeypatch):
    algorithm = sampled(paths=2, alpha_warmup=0, kd_warmup=0)
    (train, valid), *_ = batches(1)

    def told(drawn):
        raise LookupError("the host asks")

    monkeypatch.setattr(SubGraphs, "picks", property(told))
    with pytest.raises(LookupError):
        algorithm.step(train, valid)
    algorithm.run_step(train, valid)


def test_a_supernet_that_says_not_where_its_candidates_stand():
    algorithm = prepared(MSGDAS())
    algorithm.supernet.placed_edges = lambda: iter(())
    algorithm.prepare(algorithm.supernet, space=algorithm.space, epochs=1, steps_per_epoch=4)
    assert "placed_edges" in StepGraph(algorithm, Again()).reason


def test_candidates_that_share_a_parameter():
    algorithm = prepared(MSGDAS())
    cells = algorithm.supernet.cells
    first, second = (cell.edges[0].candidate(4) for cell in (cells[0], cells[2]))
    shared = next(iter(first.modules())), next(iter(second.modules()))
    names = [name for name, _ in first.named_parameters()]
    owner, _, leaf = names[0].rpartition(".")
    setattr(shared[1].get_submodule(owner), leaf, shared[0].get_parameter(names[0]))
    algorithm.prepare(algorithm.supernet, space=algorithm.space, epochs=1, steps_per_epoch=4)
    assert "share a parameter" in StepGraph(algorithm, Again()).reason


def test_candidates_that_draw_random_numbers():
    algorithm = prepared(MSGDAS())
    edge = algorithm.supernet.cells[0].edges[0]
    edge.candidates["skip_connect"] = torch.nn.Dropout(0.5)
    before = torch.get_rng_state()
    graph = StepGraph(algorithm, recorder := Again())
    plain = copy.deepcopy(algorithm)
    (train, valid), *_ = batches(1)
    want = plain.step(train, valid)
    torch.set_rng_state(before)
    got = graph.step(train, valid)
    assert "random numbers" in graph.reason and not graph.failed and recorder.warm == 0
    assert all(torch.equal(torch.as_tensor(want[k]), torch.as_tensor(got[k])) for k in want)


def test_a_sampled_recording_that_fails_costs_no_draw():
    plain, algorithm = sampled(), sampled()
    graph = StepGraph(algorithm, Again("operation not permitted"))
    for train, valid in batches(6):
        want, got = plain.step(train, valid), graph.step(train, valid)
    assert graph.failed
    torch.testing.assert_close(got["train/loss"], want["train/loss"], rtol=1e-10, atol=1e-12)
    assert torch.equal(algorithm.generator.get_state(), plain.generator.get_state())

"""Steps that are recorded and replayed: the same search, whatever records."""

import contextlib

import torch

from pyfast_nas.algorithms import DARTS, MSGDAS, StepGraph
from pyfast_nas.spaces import DARTS as DARTSSpace


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


def prepared(algorithm, epochs=3, steps_per_epoch=4, dtype=torch.float64):
    torch.manual_seed(0)
    space = DARTSSpace(channels=4, cells=3, image_size=8, num_classes=3)
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


def test_the_same_search_to_the_bit():
    plain, graphed = prepared(DARTS()), prepared(DARTS())
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


def test_a_batch_of_another_size_runs_as_it_is():
    graph = StepGraph(prepared(DARTS()), recorder := Again())
    for train, valid in [*batches(4), *batches(1, size=3), *batches(1)]:
        graph.step(train, valid)
    assert recorder.replays == 2 and not graph.reason


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
    graph = StepGraph(prepared(MSGDAS(paths=1)), recorder := Again())
    for train, valid in batches(4):
        graph.step(train, valid)
    assert "host" in graph.reason and recorder.warm == 0
    assert StepGraph(prepared(DARTS())).reason == "the search runs on cpu"

"""A supernet small enough for exhaustive checks, toy data, and bit-exact snapshots."""

import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from pyfast_nas import spaces
from pyfast_nas.nn.mixed_op import MixedOp, mix_edges
from pyfast_nas.nn.supernet import Supernet
from pyfast_nas.spaces import Genotype, GenotypeEdge


class TinySupernet(Supernet):
    """Two choice rows of unlike length, batch norms that count, and dropout."""

    def __init__(self) -> None:
        rows = (("plain", "normed", "dropped"), ("plain", "normed"))
        super().__init__({"cell": rows})

        def candidate(name: str) -> nn.Module:
            return {
                "plain": lambda: nn.Linear(4, 4),
                "normed": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
                "dropped": lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)),
            }[name]()

        self.stem = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.edges = nn.ModuleList(MixedOp({name: candidate(name) for name in row}) for row in rows)
        self.head = nn.Linear(4, 3)

    def mix(self, x: Tensor, gates) -> Tensor:
        x = self.stem(x)
        h = mix_edges([self.edges[0]], [x], gates["cell"])
        y = mix_edges([self.edges[1]], [h.tanh()], gates["cell"], first_row=1)
        return self.head(y + x)


class TinySpace:
    """The space of `TinySupernet`: a chain of two rows."""

    name = "tiny"

    def supernet(self, generator: torch.Generator | None = None) -> TinySupernet:
        return TinySupernet()

    @property
    def candidates(self):
        return TinySupernet().candidates

    def derive(self, alphas) -> Genotype:
        return self._genotype(alphas["cell"].argmax(dim=1).tolist())

    def random_genotype(self, generator: torch.Generator | None = None) -> Genotype:
        picks = [int(torch.randint(n, (), generator=generator)) for n in (3, 2)]
        return self._genotype(picks)

    def _genotype(self, picks) -> Genotype:
        names = ("plain", "normed", "dropped")
        edges = tuple(GenotypeEdge(k, k + 1, names[pick]) for k, pick in enumerate(picks))
        return Genotype("tiny", {"cell": edges}, {"cell": (2,)})


def toy_batch(size: int = 64, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Labels in two classes, and eight features shifted by half towards the label's sign."""
    labels = torch.randint(2, (size,), generator=generator)
    noise = torch.randn(size, 8, generator=generator)
    return noise + 0.5 * (2 * labels - 1).unsqueeze(1), labels


def tiny_batch(seed: int, size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, 4, generator=generator)
    return inputs, torch.randint(3, (size,), generator=generator)


def freeze(value: object) -> object:
    """A copy that compares by value, tensors by their bytes."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().cpu().numpy().tobytes()
    if isinstance(value, dict):
        return {key: freeze(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [freeze(item) for item in value]
    return value


def snapshot(algorithm, *, alphas: bool) -> dict[str, object]:
    """Everything that an architecture step must leave alone, plus the alphas if asked for."""
    model = algorithm.supernet
    arch = {id(p) for p in model.arch_parameters()}
    state = {
        "weights": {n: freeze(p) for n, p in model.named_parameters() if id(p) not in arch},
        "buffers": {n: freeze(b) for n, b in model.named_buffers()},
        "grads": {n: freeze(p.grad) for n, p in model.named_parameters() if id(p) not in arch},
        "flags": {n: p.requires_grad for n, p in model.named_parameters()},
        "modes": {n: m.training for n, m in model.named_modules()},
        "tracking": {n: getattr(m, "track_running_stats", None) for n, m in model.named_modules()},
        "hooks": {
            n: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for n, m in model.named_modules()
        },
        "optimizer": freeze(algorithm.weight_optimizer.state_dict()),
        "entries": len(algorithm.weight_optimizer.state),
        "torch": freeze(torch.get_rng_state()),
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
    }
    if alphas:
        state["alphas"] = freeze(dict(algorithm.alphas))
        if hasattr(algorithm, "alpha_optimizer"):
            state["alpha optimizer"] = freeze(algorithm.alpha_optimizer.state_dict())
    return state


def start(algorithm, space=None, *, seed: int = 0, epochs: int = 2, steps_per_epoch: int = 3):
    """Prepare an algorithm on a fresh supernet; all randomness follows from the seed."""
    space = TinySpace() if space is None else space
    torch.manual_seed(seed)
    supernet = space.supernet()
    algorithm.prepare(
        supernet,
        space=space,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        generator=torch.Generator().manual_seed(seed),
    )
    return algorithm


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of a few hundred numbers: a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(name="start")
def start_fixture() -> Callable:
    return start


@pytest.fixture(name="snapshot")
def snapshot_fixture() -> Callable:
    return snapshot


@pytest.fixture(name="freeze")
def freeze_fixture() -> Callable:
    return freeze


@pytest.fixture(name="tiny_batch")
def tiny_batch_fixture() -> Callable:
    return tiny_batch


@pytest.fixture(name="toy_batch")
def toy_batch_fixture() -> Callable:
    return toy_batch


@pytest.fixture
def tiny_space() -> TinySpace:
    return TinySpace()


@pytest.fixture
def small_darts() -> spaces.DARTS:
    """A DARTS space whose supernet steps in a few dozen milliseconds."""
    return spaces.DARTS(
        channels=4,
        cells=3,
        nodes=2,
        num_classes=3,
        in_channels=1,
        image_size=8,
        track_running_stats=True,
    )


@pytest.fixture
def image_batch() -> Callable:
    def make(seed: int, size: int = 4) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(size, 1, 8, 8, generator=generator)
        return images, torch.randint(3, (size,), generator=generator)

    return make

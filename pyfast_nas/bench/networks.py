"""What a case of a network is, and the whole supernets: sizes, the plain module and ours."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from pyfast_nas import spaces
from pyfast_nas.bench.plain_darts import PlainDARTS
from pyfast_nas.bench.plain_nas_bench_201 import PlainNASBench201
from pyfast_nas.bench.rivals import PROVIDERS
from pyfast_nas.bench.workload import DEEP, FLOAT64, KINKS, Errors, Workload, check

__all__ = ["CLASSES", "DARTSCase", "NASBench201Case", "NetworkCase", "copy_values"]

WHOLE = (
    "eager",
    "channels-last",
    "checkpoint",
    *(
        name
        for name in PROVIDERS
        if name.startswith(("compile-edge", "compile-cell", "compile-whole"))
    ),
    "accelerate",
)
CLASSES = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkCase:
    """Base of the cases: one module at one size, run by any provider."""

    operator: ClassVar[str]
    providers: ClassVar[tuple[str, ...]]
    is_whole: ClassVar[bool] = False
    """Whether it takes images rather than what a network hands to one of its parts."""

    batch: int = 16

    @property
    def name(self) -> str:
        """Label of tables and result rows."""
        raise NotImplementedError

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each feature map that goes in."""
        raise NotImplementedError

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the outcome."""
        raise NotImplementedError

    @property
    def weights_shape(self) -> tuple[int, ...] | None:
        """Shape of the mixing weights that go in; None where the module has its own."""
        return None

    def plain(self) -> nn.Module:
        """Return the module in plain PyTorch."""
        raise NotImplementedError

    def ours(self) -> nn.Module:
        """Return the package's own module, its parameters in the order of the plain one."""
        raise NotImplementedError

    def module(self, provider: str) -> nn.Module:
        """Return a fresh module, with the same values for every provider."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = self.plain()
            if PROVIDERS[provider].ours:
                plain, module = module, self.ours()
                copy_values(plain, module)
        return module

    def workload(
        self, provider: str, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> Workload:
        """Return the calls of a provider, ready to be timed.

        Raises:
            NotImplementedError: If the provider cannot run this case.
        """
        how = PROVIDERS[provider]
        module = self.module(provider).to(device, dtype)
        generator = torch.Generator().manual_seed(1)

        def draw(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        inputs, gradient = [draw(shape) for shape in self.input_shapes], draw(self.output_shape)
        if how.channels_last:
            module.to(memory_format=torch.channels_last)
        # A part that is ours gets its inputs as the layer before it leaves them.
        if how.channels_last or (how.is_native and not self.is_whole and not how.nchw):
            inputs = [_channels_last(x) for x in inputs]
            gradient = _channels_last(gradient)
        leaves = [] if self.is_whole else [x.requires_grad_() for x in inputs]
        if self.weights_shape is not None:
            leaves.append(draw(self.weights_shape).softmax(-1).requires_grad_())
            inputs.append(leaves[-1])
        how.apply(module)

        def run() -> Tensor:
            with how.serving():
                return module(*inputs)

        def forward() -> Tensor:
            with torch.no_grad():
                return run()

        parameters = list(module.parameters())
        return Workload(
            forward=forward,
            run=run,
            leaves=[*leaves, *parameters],
            gradient=gradient,
            parameters=[*parameters, *module.buffers()],
        )

    def check(self, works: Mapping[str, Workload], device: str = "cpu") -> dict[str, Errors]:
        """Compare providers in float32 with plain PyTorch in float64; return their errors.

        What is ours is compared in float64 as well, where the limit is sharp.

        Raises:
            WrongResultError: If a provider computes something else.
        """
        truth = self.workload("eager", torch.float64, device).results()
        plain = "eager"
        wide = {plain: truth}
        for name in works:
            if PROVIDERS[name].is_native:
                wide[name] = self.workload(name, torch.float64, device).results()
                check(wide, truth, plain, f"{self.name} in float64", tolerance=FLOAT64)
                del wide[name]
        results = {name: work.results() for name, work in works.items()}
        if plain not in results:
            results[plain] = self.workload(plain, device=device).results()
        return check(results, truth, plain, self.name, tolerance=DEEP, kinks=KINKS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ImagesCase(NetworkCase):
    """A whole supernet on images of CIFAR."""

    operator: ClassVar[str] = "supernet"
    is_whole: ClassVar[bool] = True

    channels: int = 16
    size: int = 32

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """Shape of the images."""
        return [(self.batch, 3, self.size, self.size)]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the class logits."""
        return (self.batch, CLASSES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DARTSCase(_ImagesCase):
    """The search supernet of DARTS."""

    providers: ClassVar[tuple[str, ...]] = (*WHOLE, "reference", "fused")

    cells: int = 8

    @property
    def name(self) -> str:
        """Label of tables and result rows."""
        return f"DARTS, C = {self.channels}, {self.cells} cells, batch {self.batch}"

    def plain(self) -> nn.Module:
        """Return the supernet in plain PyTorch."""
        return PlainDARTS(self.channels, self.cells, CLASSES)

    def ours(self) -> nn.Module:
        """Return the package's supernet."""
        return spaces.DARTS(
            channels=self.channels, cells=self.cells, num_classes=CLASSES, image_size=self.size
        ).supernet()


@dataclasses.dataclass(frozen=True, kw_only=True)
class NASBench201Case(_ImagesCase):
    """The search supernet of NAS-Bench-201."""

    providers: ClassVar[tuple[str, ...]] = (*WHOLE, "reference", "fused")

    blocks: int = 5

    @property
    def name(self) -> str:
        """Label of tables and result rows."""
        return f"NAS-Bench-201, C = {self.channels}, N = {self.blocks}, batch {self.batch}"

    def plain(self) -> nn.Module:
        """Return the supernet in plain PyTorch."""
        return PlainNASBench201(self.channels, self.blocks, CLASSES)

    def ours(self) -> nn.Module:
        """Return the package's supernet, with the running statistics of the plain one."""
        return spaces.NASBench201(
            channels=self.channels,
            cells=self.blocks,
            num_classes=CLASSES,
            image_size=self.size,
            track_running_stats=True,
        ).supernet()


def copy_values(source: nn.Module, target: nn.Module) -> None:
    """Copy all parameters of a module to one that has the same in the same order.

    Raises:
        ValueError: If their shapes differ.

    Example:
        >>> a, b = nn.Linear(2, 3), nn.Linear(2, 3)
        >>> copy_values(a, b)
        >>> bool((a.weight == b.weight).all())
        True
    """
    sources, targets = list(source.parameters()), list(target.parameters())
    shapes = [p.shape for p in sources]
    if shapes != [p.shape for p in targets]:
        raise ValueError("copy_values: target must have parameters of the same shapes as source")
    with torch.no_grad():
        for there, here in zip(sources, targets, strict=True):
            here.copy_(there)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

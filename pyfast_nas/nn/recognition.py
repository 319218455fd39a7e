"""What a candidate computes, read off its structure: module trees to candidates of a fused node.

Layers of `torch.nn` and the order in which they are held decide, never the name of a model's own
class. Nothing is run here.
"""

import operator
from collections.abc import Sequence

import torch
from torch import nn

from pyfast_nas.nn.primitives import FactorizedReduce, SkipConnect, Zero
from pyfast_nas.nn.recipes import NormLayer, Recipe, StageLayers

__all__ = ["foreign_leaf", "foreign_settings", "recognise", "signature"]

# Settings of a layer that say what it computes beside its tensors. They are compared at every
# call: whoever changes a stride afterwards gets the plain module.
_SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("stride", "padding", "dilation", "groups", "padding_mode"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    nn.AvgPool2d: (
        *("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
        "divisor_override",
    ),
    nn.ReLU: ("inplace",),
    nn.BatchNorm2d: (),
    nn.Identity: (),
    SkipConnect: (),
    Zero: ("stride",),
}
_OWN_KEYS = frozenset(nn.Module().__dict__)
# Values that cannot change without being replaced.
_FIXED = (int, float, str, tuple, type(None), torch.dtype)


def recognise(module: nn.Module, *, wrappers: bool = False) -> Recipe | None:
    """Return what ``module`` computes as a candidate of a fused node, or None if that is unknown.

    Known are the identity, 3x3 pooling with or without a batch norm, and one or two stages of
    ReLU, depthwise convolution, 1x1 convolution and batch norm, or of ReLU, one convolution of any
    odd window and batch norm; the convolution in front of the norm may have a bias. They may lie in
    nested `nn.Sequential` modules. A factorised reduction is known too: ReLU, two 1x1 convolutions
    of stride 2 side by side, batch norm, without a bias.

    Args:
        module: A candidate operation.
        wrappers: Whether a module with a ``forward`` of its own may be taken to run its children
            in order, perhaps behind a ReLU that is no layer. Such a recipe is not ``certain``.

    Example:
        >>> recipe = recognise(nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(4)))
        >>> recipe.kind, recipe.stride, recipe.in_channels
        ('max_pool', 2, 4)
        >>> recognise(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))) is None
        True
    """
    tree: list[nn.Module] = []
    layers = _layers(module, wrappers, tree)
    if layers is None:
        return None
    kind, recipe = _match(layers)
    if kind is None and not isinstance(module, nn.Sequential):
        kind, recipe = _match_reduction(layers)
    watch = _watch(tree)
    if kind is None and not watch["certain"]:
        # Its own forward may begin with the function in place of the layer.
        for match in (_match_convolutions, _match_reduction):
            if kind is None:
                kind, recipe = match([nn.ReLU(), *layers])
    if kind is None:
        return None
    return Recipe(module, kind, **recipe, **watch)


def foreign_leaf(module: nn.Module, kind: str, stride: int) -> Recipe:
    """Return the recipe of a module without parts that was seen to be an identity or zero.

    Args:
        module: A module with no children, parameters or buffers.
        kind: ``"skip"`` or ``"zero"``.
        stride: Of a zero.
    """
    return Recipe(module, kind, stride, **_watch([module]) | {"certain": False})


def _layers(module: nn.Module, wrappers: bool, tree: list[nn.Module]) -> list[nn.Module] | None:
    """Return the layers that run one after another, or None where that cannot be known.

    Args:
        module: Root of the tree.
        wrappers: As in `recognise`.
        tree: Gets every module that was looked at.
    """
    tree.append(module)
    if type(module) in _SETTINGS:
        return [] if type(module) is nn.Identity else [module]
    runs_in_order = type(module) is FactorizedReduce or (
        isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    )
    if not runs_in_order and not (wrappers and _is_wrapper(module)):
        return None
    layers: list[nn.Module] = []
    for child in module.children():
        inner = _layers(child, wrappers, tree)
        if inner is None:
            return None
        layers += inner
    return layers


def _is_wrapper(module: nn.Module) -> bool:
    """Say whether nothing but its children and its settings can tell what a module computes."""
    return (
        bool(module._modules)
        and not module._parameters
        and not module._buffers
        and all(isinstance(value, _FIXED) for value in foreign_settings(module).values())
    )


def foreign_settings(module: nn.Module) -> dict[str, object]:
    """Return what a module's own class keeps on it beside parameters, buffers and children."""
    return {key: value for key, value in module.__dict__.items() if key not in _OWN_KEYS}


def signature(module: nn.Module) -> tuple:
    """Return what a module and its copies have in common, as far as it says what they compute."""
    return tuple(
        (
            type(part),
            *(
                (k, v if isinstance(v, _FIXED) else id(v))
                for k, v in foreign_settings(part).items()
            ),
        )
        for part in module.modules()
    )


def _watch(tree: Sequence[nn.Module]) -> dict[str, object]:
    """Return what to look at later, to see that the structure is still the same."""
    settings = []
    certain = True
    for module in tree:
        known = _SETTINGS.get(type(module))
        if known is None and not isinstance(module, nn.Sequential | FactorizedReduce):
            certain = False
            known = tuple(foreign_settings(module))
        if known:
            read = operator.itemgetter(*known)
            settings.append((module.__dict__, read, read(module.__dict__)))
    return {
        "certain": certain,
        "parts": tuple(module.__dict__ for module in tree),
        "children": tuple((m._modules, tuple(m._modules.values())) for m in tree if m._modules),
        "settings": tuple(settings),
    }


def _match(layers: list[nn.Module]) -> tuple[str | None, dict[str, object]]:
    """Return the kind of candidate that the layers are, and the fields of its recipe."""
    if not layers:
        return "skip", {}
    first = layers[0]
    if len(layers) == 1 and isinstance(first, SkipConnect):
        return "skip", {"skip": first}
    if len(layers) == 1 and isinstance(first, Zero):
        return "zero", {"stride": first.stride}
    if isinstance(first, nn.MaxPool2d | nn.AvgPool2d):
        return _match_pool(layers)
    return _match_convolutions(layers)


def _match_pool(layers: list[nn.Module]) -> tuple[str | None, dict[str, object]]:
    pool, *rest = layers
    stride = _pair(pool.stride)
    fits = (
        _pair(pool.kernel_size) == (3, 3)
        and _pair(pool.padding) == (1, 1)
        and stride in ((1, 1), (2, 2))
        and not pool.ceil_mode
    )
    if isinstance(pool, nn.MaxPool2d):
        kind = "max_pool"
        fits = fits and _pair(pool.dilation) == (1, 1) and not pool.return_indices
    else:
        kind = "avg_pool"
        fits = fits and not pool.count_include_pad and pool.divisor_override is None
    if not fits or len(rest) > 1:
        return None, {}
    recipe: dict[str, object] = {"stride": stride[0]}
    if rest:
        if not isinstance(rest[0], nn.BatchNorm2d):
            return None, {}
        norm = NormLayer(rest[0])
        recipe |= {"norm": norm, "in_channels": norm.channels, "out_channels": norm.channels}
    return kind, recipe


def _match_convolutions(layers: list[nn.Module]) -> tuple[str | None, dict[str, object]]:
    stages: list[StageLayers] = []
    strides: list[int] = []
    channels: list[int] = []
    at = 0
    while at < len(layers):
        length = 4 if at + 3 < len(layers) and isinstance(layers[at + 3], nn.BatchNorm2d) else 3
        found = _match_stage(layers[at : at + length])
        if found is None or len(stages) == 2:
            return None, {}
        stage, stride, widths = found
        if channels and channels[-1] != widths[0]:
            return None, {}
        stages.append(stage)
        strides.append(stride)
        channels += widths
        at += length
    # A stride in the second stage, and another width between the two, are not served.
    if strides[1:] not in ([], [1]) or channels[1] != channels[-1]:
        return None, {}
    return "conv", {
        "stages": tuple(stages),
        "stride": strides[0],
        "in_channels": channels[0],
        "out_channels": channels[-1],
    }


def _match_reduction(layers: list[nn.Module]) -> tuple[str | None, dict[str, object]]:
    """Match ReLU, two 1x1 convolutions of stride 2 that read the same, and a norm over both."""
    if len(layers) != 4 or not isinstance(layers[0], nn.ReLU):
        return None, {}
    _, first, second, norm = layers
    if not isinstance(norm, nn.BatchNorm2d) or not all(
        isinstance(conv, nn.Conv2d)
        and conv.bias is None
        and conv.kernel_size == (1, 1)
        and conv.stride == (2, 2)
        and conv.groups == 1
        and _padding(conv) == (0, 0)
        for conv in (first, second)
    ):
        return None, {}
    channels = first.out_channels + second.out_channels
    if first.in_channels != second.in_channels or norm.num_features != channels:
        return None, {}
    stage = StageLayers(None, first._parameters, NormLayer(norm), shifted=second._parameters)
    return "conv", {
        "stages": (stage,),
        "stride": 2,
        "in_channels": first.in_channels,
        "out_channels": channels,
    }


def _match_stage(layers: list[nn.Module]) -> tuple[StageLayers, int, list[int]] | None:
    """Match ReLU, perhaps depthwise, convolution, norm: the stage, its stride, channels in and out.

    Behind a depthwise convolution it must be a pointwise one, alone it may have any odd window.
    A ReLU that works in place is served where it reads what nobody else does; whether it is the
    first one is for the caller, who knows who else reads its input.
    """
    if not isinstance(layers[0], nn.ReLU) or not isinstance(layers[-1], nn.BatchNorm2d):
        return None
    convolutions = layers[1:-1]
    if len(convolutions) not in (1, 2) or not all(
        isinstance(conv, nn.Conv2d) and conv.padding_mode == "zeros" for conv in convolutions
    ):
        return None
    first, last = convolutions[0], convolutions[-1]
    size, dilation = first.kernel_size[0], first.dilation[0]
    reach = dilation * (size - 1) // 2
    if (
        first.kernel_size != (size, size)
        or size % 2 == 0
        or first.dilation != (dilation, dilation)
        or _padding(first) != (reach, reach)
        or first.stride not in ((1, 1), (2, 2))
        or last.groups != 1
        or last.out_channels != layers[-1].num_features
    ):
        return None
    if last is not first and (
        first.bias is not None
        or not first.in_channels == first.out_channels == first.groups == last.in_channels
        or last.kernel_size != (1, 1)
        or last.stride != (1, 1)
        or _padding(last) != (0, 0)
    ):
        return None
    depthwise = None if last is first else first._parameters
    stage = StageLayers(depthwise, last._parameters, NormLayer(layers[-1], last), dilation)
    return stage, first.stride[0], [first.in_channels, last.out_channels]


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":  # which torch allows at stride 1 only
        return tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    return conv.padding


def _pair(value: int | tuple[int, int]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)

"""convert() and revert(): exchange the layers of a model, all of them or none."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, count
from typing import Any
from weakref import WeakValueDictionary

import mlx.core as mx
from mlx import nn

from mlx_ane import _ext
from mlx_ane._device import resolve
from mlx_ane.autotune import OBJECTIVES, Decision, Tuner
from mlx_ane.nn import (
    PRECISIONS,
    ANEEmbedding,
    ANELinear,
    ANEQuantizedEmbedding,
    ANEQuantizedLinear,
    _as,
    _Placed,
    to_plain,
)
from mlx_ane.report import ConversionReport, ConvertedLayer, SkippedLayer

#: Decides by (path, module) whether, or with which options, to convert a layer.
Predicate = Callable[[str, nn.Module], "bool | dict[str, Any]"]
#: Names the device of a layer by (path, module); None for the default.
Policy = Callable[[str, nn.Module], "str | None"]

POLICIES = ("all", "frozen", "auto")
OPTIONS = ("device", "precision", "policy")

#: The layer of ours for each layer of MLX. Subclasses are not in it: their
#: __call__ may do something else.
CLASSES: dict[type, type[Any]] = {
    nn.Linear: ANELinear,
    nn.QuantizedLinear: ANEQuantizedLinear,
    nn.Embedding: ANEEmbedding,
    nn.QuantizedEmbedding: ANEQuantizedEmbedding,
}
FLOATS = (mx.float32, mx.float16, mx.bfloat16)

#: Wrappers that multiply with the weight of their `linear` or `embedding`
#: themselves, so that converting it would change nothing.
_READS_AROUND = {
    "DoRALinear": "DoRALinear multiplies with the weight of its linear itself",
    "DoRAEmbedding": "DoRAEmbedding multiplies with the weight itself",
}

_SHARDED = "tensor parallelism: it holds a part of a weight and joins it with others"
#: Layers that multiply with more or less than one matrix, quantised or not.
_NO_SINGLE_MATRIX = {
    "SwitchLinear": "a mixture of experts: each token picks its weight (mx.gather_mm)",
    "MultiLinear": "one weight a head, multiplied as a batch",
    "AllToShardedLinear": _SHARDED,
    "ShardedToAllLinear": _SHARDED,
}


def convert(
    model: nn.Module,
    *,
    class_predicate: Predicate | None = None,
    device: str | None = None,
    policy: str | Policy = "all",
    precision: str | None = None,
    objective: str = "time",
    batch_shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
) -> ConversionReport:
    """Move the matrix products of a model's layers to a device, in place.

    nn.Linear becomes ANELinear, nn.Embedding ANEEmbedding (for tied output heads),
    and the quantised ones their counterparts, wherever they are in the model: in
    lists, dicts, LoRA layers. Parameters keep their paths and arrays.
    Every layer that holds a matrix and is not converted is listed with a reason.
    If anything is wrong, nothing is converted.

    Args:
        model (nn.Module): The model; layers already converted are placed anew.
        class_predicate (callable, optional): Called with (path, module) for each
            layer that can be converted, as in :func:`mlx.nn.quantize`. Returns
            True, False, or a dict of "device", "precision" and "policy" for this
            layer.
        device (str, optional): "auto", "ane", "emulated" or "cpu"; None follows
            :func:`mlx_ane.default_device`, also when it changes later.
        policy (str or callable): "all" places every converted layer on the device;
            "frozen" those whose weight is frozen at the time of the call, the
            others on the CPU; "auto" those whose product is measured to be better
            there than on the CPU's BLAS; a callable gets (path, module) and returns
            a device name, or None for ``device``.
        precision (str, optional): "default"; "high" for a two-term split of both
            operands; or "exact" for fp32 on the CPU's BLAS, whatever the device.
        objective (str): What policy "auto" minimises: "time" of the forward
            products, "energy" (time times published watts: an estimate), or
            "free_gpu", time without MLX's GPU as a choice. With the others a layer
            stays on MLX where its GPU is best.
        batch_shape (Sequence[int] or Sequence of them, optional): Shape of the
            model's input, or several, from which policy "auto" learns the rows of
            each layer; without it every layer is measured with 512 rows.

    Returns:
        ConversionReport: What was converted, what was not and why; printing it
        later shows what ran where.

    Raises:
        ValueError: If an argument, a predicate's answer or a layer is malformed.
        RuntimeError: If this machine lacks the device.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> report = ane.convert(model, device="emulated")
        >>> len(report.converted)
        2
    """
    _check_model(model, "convert")
    defaults = _Options(device, policy, precision)
    sites = _find(model)
    tune = _tuning(model, sites, objective, batch_shape)
    report = ConversionReport()
    new_layers = [
        (site, layer)
        for site in sites
        if (layer := _decide(site, class_predicate, defaults, tune, report)) is not None
    ]
    for site, layer in new_layers:
        site.replace(layer)
    _give_names([(s, layer) for s, layer in new_layers if isinstance(layer, _Placed)])
    return report


def revert(model: nn.Module) -> nn.Module:
    """Put the plain MLX layers back, with the same array objects, in place.

    Args:
        model (nn.Module): A model that :func:`convert` changed.

    Returns:
        nn.Module: The model.
    """
    _check_model(model, "revert")
    for site in _find(model):
        site.replace(to_plain(site.module))
    return model


#: Layers that live, by the name under which they are counted.
_named: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()


def _give_names(layers: list[tuple[_Site, Any]]) -> None:
    """Their paths, numbered where a layer of another model has that name."""
    unnamed = [s for s, _ in layers if not getattr(s.module, "_name", "")]
    if any(site.path in _named for site in unnamed):
        gc.collect()  # the other model may be gone, and wait for this
    for site, layer in layers:
        name = getattr(site.module, "_name", "")
        if not name:
            numbered = (f"{site.path}#{i}" for i in count(2))
            name = next(n for n in chain([site.path], numbered) if n not in _named)
            _ext.forget_layer(name)
        layer._name = name
        _named[name] = layer


def _check_model(model: object, where: str) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"[mlx_ane.{where}] model is {type(model).__name__}, need an nn.Module."
        )
    if isinstance(model, _Placed) or type(model) in CLASSES:
        raise ValueError(
            f"[mlx_ane.{where}] model is itself a {type(model).__name__}, which "
            f"cannot be exchanged in place; use from_... or to_... of mlx_ane.nn."
        )


@dataclass
class _Options:
    """Checked options of one layer."""

    device: str | None
    policy: str | Policy
    precision: str | None

    def __post_init__(self) -> None:
        resolve(self.device, "convert")  # unknown or missing devices fail here
        if not callable(self.policy) and self.policy not in POLICIES:
            raise ValueError(
                f"[mlx_ane.convert] policy is {self.policy!r}, need one of "
                f"{', '.join(map(repr, POLICIES))} or a callable."
            )
        if self.precision not in (None, *PRECISIONS):
            raise ValueError(
                f"[mlx_ane.convert] precision is {self.precision!r}, need one of "
                f"{', '.join(map(repr, PRECISIONS))} or None."
            )

    def updated(self, path: str, answer: object) -> _Options:
        """These options changed by what a predicate answered for a layer."""
        if answer is True:
            return self
        if not isinstance(answer, dict):
            raise ValueError(
                f"[mlx_ane.convert] class_predicate returned {answer!r} for {path}, "
                f"need a bool or a dict of {', '.join(map(repr, OPTIONS))}."
            )
        unknown = [key for key in answer if key not in OPTIONS]
        if unknown:
            raise ValueError(
                f"[mlx_ane.convert] class_predicate returned the option "
                f"{unknown[0]!r} for {path}, need one of "
                f"{', '.join(map(repr, OPTIONS))}."
            )
        return _Options(**{**vars(self), **answer})

    def device_for(self, path: str, module: nn.Module) -> str | None:
        if not callable(self.policy):
            return self.device
        device = self.policy(path, module)
        if device is None:
            return self.device
        resolve(device, "convert")
        return str(device)


@dataclass
class _Site:
    """A module and every place in the model that refers to it."""

    path: str
    module: nn.Module
    parent: nn.Module | None
    #: (container, key) pairs; a container is a Module, a dict or a list.
    places: list[tuple[Any, Any]] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)

    def replace(self, module: nn.Module) -> None:
        for container, key in self.places:
            container[key] = module


def _find(model: nn.Module) -> list[_Site]:
    """Every module below `model`, each object once, in the model's order."""
    sites: dict[int, _Site] = {id(model): _Site("", model, None)}

    def visit(container: Any, prefix: str, owner: nn.Module) -> None:
        for key, value in _entries(container):
            path = f"{prefix}.{key}" if prefix else str(key)
            if isinstance(value, nn.Module):
                known = id(value) in sites
                site = sites.setdefault(id(value), _Site(path, value, owner))
                site.places.append((container, key))
                if known:
                    site.aliases.append(path)
                else:
                    visit(value, path, value)
            elif isinstance(value, (dict, list)):
                visit(value, path, owner)

    visit(model, "", model)
    return list(sites.values())


def _entries(container: Any) -> Iterator[tuple[Any, Any]]:
    return iter(
        container.items() if isinstance(container, dict) else enumerate(container)
    )


#: Measures where a plain layer should run, by its path, for these options.
_Tune = Callable[[str, nn.Module, _Options], Decision]


def _tuning(
    model: nn.Module, sites: list[_Site], objective: str, batch_shape: Any
) -> _Tune:
    """The model is traced only if some layer's policy is "auto"."""
    if objective not in OBJECTIVES:
        raise ValueError(
            f"[mlx_ane.convert] objective is {objective!r}, need one of "
            f"{', '.join(map(repr, OBJECTIVES))}."
        )

    @cache
    def tuner() -> Tuner:
        layers = [(s.path, s.module) for s in sites if _is_convertible(s)]
        return Tuner(model, layers, objective, batch_shape)

    return lambda path, module, options: tuner().decide(
        path, module, options.device, options.precision or "default"
    )


def _is_convertible(site: _Site) -> bool:
    module = to_plain(site.module)
    return _holds_matrix(module) and _why_not(module, site.parent) is None


def _decide(
    site: _Site,
    predicate: Predicate | None,
    defaults: _Options,
    tune: _Tune,
    report: ConversionReport,
) -> nn.Module | None:
    """The new layer of a site, or None; the report learns what was decided."""
    module = to_plain(site.module)
    if not _holds_matrix(module):
        return None
    options, reason = defaults, _why_not(module, site.parent)
    if reason is None and predicate is not None:
        answer = predicate(site.path, module)
        if answer is False or answer is None:
            reason = "class_predicate said no"
        else:
            options = defaults.updated(site.path, answer)
    if reason is None and options.precision == "high" and "scales" in module:
        reason = "precision 'high' is for weights that are not quantised"
    decision = None
    if reason is None:
        _check_arrays(site.path, module)
        if options.policy == "auto":
            decision = tune(site.path, module, options)
            reason = f"{decision}" if decision.device == "gpu" else None
    if reason is not None:
        report.skipped.append(
            SkippedLayer(site.path, type(module).__name__, _shape(module), reason)
        )
        # A layer of ours that is no longer wanted goes back to plain MLX.
        return module if isinstance(site.module, _Placed) else None
    layer = _as(
        CLASSES[type(module)],
        module,
        _device=decision.device if decision else options.device_for(site.path, module),
        _precision=options.precision or "default",
        _only_frozen=options.policy == "frozen",
    )
    report.converted.append(
        ConvertedLayer(
            site.path,
            type(layer).__name__,
            _shape(module),
            layer,
            site.aliases,
            decision,
        )
    )
    return layer


def _holds_matrix(module: nn.Module) -> bool:
    return any(isinstance(v, mx.array) and v.ndim >= 2 for v in module.values())


def _shape(module: nn.Module) -> tuple[int, ...]:
    """(N, K) of the product that the layer makes; the weight's shape otherwise."""
    weight = module.get("weight")
    if not isinstance(weight, mx.array):
        weight = next(v for v in module.values() if isinstance(v, mx.array))
    if isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding)):
        n, packed = weight.shape  # packed: 32-bit words
        return (n, packed * 32 // module.bits)
    return tuple(weight.shape)


def _why_not(module: nn.Module, parent: nn.Module | None) -> str | None:
    """Why a layer cannot be converted, or None."""
    wrapper = type(parent).__name__
    if type(module) not in CLASSES:
        return _why_not_class(module)
    if wrapper in _READS_AROUND:
        return _READS_AROUND[wrapper]
    weight = module.get("weight")
    if not isinstance(weight, mx.array) or weight.ndim != 2:
        return "its weight is not a matrix"
    if "scales" not in module and weight.dtype not in FLOATS:
        return f"its weight is {weight.dtype}, need float32, float16 or bfloat16"
    return None


def _why_not_class(module: nn.Module) -> str:
    name = type(module).__name__
    if isinstance(module, nn.Linear):
        return "a subclass of nn.Linear, whose __call__ may differ"
    if isinstance(module, nn.QuantizedLinear):
        return "a subclass of nn.QuantizedLinear, whose __call__ may differ"
    if isinstance(module, nn.Embedding):
        return "a subclass of nn.Embedding, whose as_linear may differ"
    if isinstance(module, nn.QQLinear):
        return "nn.QQLinear quantises its input, which the engine's programs do not"
    if isinstance(module, nn.QuantizedEmbedding):
        return "a subclass of nn.QuantizedEmbedding, whose as_linear may differ"
    if name.startswith(("LoRA", "DoRA")):
        return "its low-rank matrices are no layer; what it wraps is listed apart"
    known = _NO_SINGLE_MATRIX.get(name.removeprefix("Quantized"))
    return f"{known}; it stays on MLX" if known else f"{name} is no linear layer"


def _check_arrays(path: str, module: nn.Module) -> None:
    """Shapes that belong together, so that a bad checkpoint is named here."""
    n, k = _shape(module)
    bias = module.get("bias")
    if bias is not None and tuple(bias.shape) != (n,):
        raise ValueError(
            f"[mlx_ane.convert] {path} has weight ({n}, {k}) and bias "
            f"{tuple(bias.shape)}, need bias ({n},); check the checkpoint."
        )
    if "scales" in module:
        scales, need = tuple(module["scales"].shape), (n, k // module.group_size)
        if scales != need:
            raise ValueError(
                f"[mlx_ane.convert] {path} has weight ({n}, {k}) in groups of "
                f"{module.group_size} and scales {scales}, need scales {need}; "
                f"check the checkpoint."
            )

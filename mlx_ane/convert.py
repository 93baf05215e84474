"""convert() and revert(): exchange the layers of a model, all of them or none."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, count
from typing import Any
from weakref import WeakValueDictionary

from mlx import nn

from mlx_ane import _ext
from mlx_ane._attention import attending_class
from mlx_ane._device import resolve
from mlx_ane._exchange import exchange, is_exchanged, original_class, originals, restore
from mlx_ane._layers import (
    CLASSES,
    Site,
    find_sites,
    holds_matrix,
    product_shape,
    why_not,
)
from mlx_ane._types import (
    ATTENTIONS,
    GRANULARITIES,
    OBJECTIVES,
    POLICIES,
    PRECISIONS,
    Attention,
    Device,
    Granularity,
    Objective,
    Policy,
    Precision,
    checked_word,
)
from mlx_ane._watch import checked_shapes
from mlx_ane.autotune import DEFAULT_ROWS, Decision, Tuner
from mlx_ane.blocks import block_class, find_blocks
from mlx_ane.estimate import choose_granularity, hint
from mlx_ane.nn import Placed
from mlx_ane.planner import planned
from mlx_ane.report import (
    AttendingModule,
    ConversionReport,
    ConvertedLayer,
    SkippedLayer,
)

#: Decides by (path, module) whether, or with which options, to convert a layer.
Predicate = Callable[[str, nn.Module], "bool | dict[str, Any]"]

OPTIONS = ("device", "precision", "policy")


def convert(
    model: nn.Module,
    *,
    class_predicate: Predicate | None = None,
    device: Device | None = None,
    policy: Policy = "all",
    precision: Precision | None = None,
    objective: Objective = "time",
    batch_shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
    attention: Attention | None = None,
    granularity: Granularity = "layer",
) -> ConversionReport:
    """Move the matrix products of a model's layers to a device, in place.

    nn.Linear becomes ANELinear, nn.Embedding ANEEmbedding (for tied output heads),
    and the quantised ones their counterparts, wherever they are in the model: in
    lists, tuples, dicts, LoRA layers. A layer stays the object that it is and changes
    its class, so that another model, optimizer or wrapper that holds it has the
    converted one; parameters keep their paths and arrays.
    Every layer that holds a matrix and is not converted is listed with a reason.
    If anything is wrong, nothing is converted.

    Args:
        model (nn.Module): The model; layers already converted are placed anew, also
            in the reports of other models that share them.
        class_predicate (callable, optional): Called with (path, module) for each
            layer that can be converted, as in :func:`mlx.nn.quantize`, while the
            layer is of its class in mlx.nn. Returns
            True, False, or a dict of "device", "precision" and "policy" for this
            layer.
        device (str, optional): "auto", "ane", "emulated" or "cpu"; None follows
            :func:`mlx_ane.default_device`, also when it changes later.
        policy (str): "all" places every converted layer on the device;
            "frozen" those whose weight is frozen at the time of the call, the
            others on the CPU; "auto" those whose product is measured to be better
            there than on the CPU's BLAS.
        precision (str, optional): "default"; "high" for a two-term split of both
            operands; or "exact" for fp32 on the CPU's BLAS, whatever the device.
        objective (str): What policy "auto" minimises: "time" of the forward
            products, "energy" (time times published watts: an estimate), or
            "free_gpu", time without MLX's GPU as a choice. With the others a layer
            stays on MLX where its GPU is best.
        batch_shape (Sequence[int] or Sequence of them, optional): Shape of the
            model's input, or several, from which policy "auto" learns the rows of
            each layer; without it every layer is measured with 512 rows. With it
            the report says where blocks, or MLX's GPU, are estimated to be faster.
        attention (str, optional): "fused" has the modules of this model attend
            through :func:`mlx_ane.fast.scaled_dot_product_attention`, on ``device``,
            or the CPU if ``precision`` is "exact"; other models do not. "mlx" and
            None leave them MLX's function. mlx-lm's LoRALinear around a converted
            layer becomes that of :meth:`mlx_ane.nn.ANELinear.to_lora` in any case.
        granularity (str): "layer": a program is one layer's product. "block": it is
            a whole block, forward or gradient; blocks are the modules in a model's
            lists that hold such layers, or those of them that ``class_predicate``
            says. What cannot be a program at a call is one by its children, else by
            its layers; the report says why. Gradients are those of the engine's fp16.
            "auto": that of the two whose training step, or forward pass if nothing is
            trained, :func:`mlx_ane.plan` estimates to be faster for ``batch_shape``,
            or 512 tokens; with policy "auto" the estimate counts what was measured
            here, and layers stay where MLX's GPU is estimated faster than blocks.

    Returns:
        ConversionReport: What was converted, what was not and why; printing it
        later shows what ran where.

    Raises:
        ValueError: If an argument, a predicate's answer or a layer is malformed.
        NotImplementedError: If blocks are to have another policy than "all" or
            another precision than "default".
        RuntimeError: If this machine lacks the device.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> report = ane.convert(model, device="emulated")
        >>> len(report.converted)
        2
    """
    _check_model(model, "convert")
    _check_predicate(class_predicate)
    defaults = _Options(device, policy, precision)
    checked_word("convert", "granularity", granularity, GRANULARITIES)
    if granularity == "block":
        _check_block(defaults, ("all",))
    if attention is not None:
        checked_word("convert", "attention", attention, ATTENTIONS, " or None")
    sites = find_sites(model)
    report = ConversionReport()
    with originals(site.module for site in sites):
        tune = _tuning(model, sites, objective, batch_shape)
        decided = [
            (site.module, _decide(site, class_predicate, defaults, tune, report))
            for site in sites
        ]
        _estimate(model, granularity, defaults, objective, batch_shape, report)
        if report.granularity == "block":
            blocks = [
                (site.module, _decide_block(site, class_predicate, defaults, report))
                for site in find_blocks(sites)
            ]
            chosen = {id(module) for module, _ in blocks}
            decided = [pair for pair in decided if id(pair[0]) not in chosen] + blocks
        others = _around_layers(sites, report)
        if attention == "fused":
            others += _attending(sites, defaults, report)
        taken = {id(module) for module, settings in decided if settings is not None}
        others = [pair for pair in others if id(pair[0]) not in taken]
    names = _names(report.converted)
    for module, settings in decided:  # from here on nothing can fail
        if settings is not None:
            original = original_class(module)
            exchange(module, CLASSES.get(original) or block_class(original), **settings)
        elif is_exchanged(module):
            restore(module)
    for module, cls in others:
        exchange(module, cls)
    for converted, name in zip(report.converted, names, strict=True):
        converted.layer._name = converted.name = name
    return report


def revert(model: nn.Module) -> nn.Module:
    """Make plain MLX layers and modules of a model's changed ones, in place.

    They stay the objects that they are, with the same array objects.

    Args:
        model (nn.Module): A model that :func:`convert` changed.

    Returns:
        nn.Module: The model.
    """
    _check_model(model, "revert")
    for site in find_sites(model):
        if is_exchanged(site.module):
            restore(site.module)
    return model


#: Modules and the classes that they are to have.
_Classes = list[tuple[nn.Module, type[Any]]]


def _around_layers(sites: list[Site], report: ConversionReport) -> _Classes:
    """mlx-lm's LoRA layers around layers that are converted."""
    if "mlx_lm.tuner.lora" not in sys.modules:  # then there are none
        return []
    from mlx_ane.lora.layers import ANELoRALinear

    converted = {id(c.layer) for c in report.converted}
    return [
        (site.module, ANELoRALinear)
        for site in sites
        if type(site.module) is ANELoRALinear._original
        and id(site.module.linear) in converted
    ]


def _attending(
    sites: list[Site], options: _Options, report: ConversionReport
) -> _Classes:
    """Modules that can attend through our function; the report learns of all."""
    device = "cpu" if options.precision == "exact" else options.device
    found: _Classes = []
    report.attention = []
    for site in sites:
        cls, reason = attending_class(site.module, device)
        if cls is not None:
            found.append((site.module, cls))
        if cls is not None or reason:
            kind = type(site.module).__name__
            report.attention.append(
                AttendingModule(site.path or kind, kind, site.module, reason)
            )
    return found


#: Layers that live, by the name under which they are counted.
_named: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()


def _names(layers: list[ConvertedLayer]) -> list[str]:
    """Those they have or had, else paths, numbered where another layer has it."""
    if any(_named.get(c.path, c.layer) is not c.layer for c in layers):
        gc.collect()  # the other model may be gone, and wait for this
    had = {id(layer): name for name, layer in _named.items()}
    names = []
    for c in layers:
        name = vars(c.layer).get("_name") or had.get(id(c.layer))
        if not name:
            numbered = (f"{c.path}#{i}" for i in count(2))
            name = next(n for n in chain([c.path], numbered) if n not in _named)
            _ext.forget_layer(name)
        _named[name] = c.layer
        names.append(name)
    return names


def _check_model(model: object, where: str) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"[mlx_ane.{where}] model is {type(model).__name__}, need an nn.Module."
        )
    if isinstance(model, Placed) or type(model) in CLASSES:
        raise ValueError(
            f"[mlx_ane.{where}] model is itself a {type(model).__name__}, need a "
            f"module that holds layers; use from_... or to_... of mlx_ane.nn."
        )


def _check_predicate(predicate: object) -> None:
    if predicate is not None and not callable(predicate):
        raise ValueError(
            f"[mlx_ane.convert] class_predicate is {predicate!r}, need a callable "
            f"that gets (path, module) and returns a bool or a dict of options."
        )


@dataclass
class _Options:
    """Checked options of one layer."""

    device: Device | None
    policy: Policy
    precision: Precision | None

    def __post_init__(self) -> None:
        resolve(self.device, "convert")  # unknown or missing devices fail here
        ending = "; to choose by layer, pass class_predicate, which may return a dict"
        checked_word(
            "convert",
            "policy",
            self.policy,
            POLICIES,
            ending if callable(self.policy) else "",
        )
        if self.precision is not None:
            checked_word("convert", "precision", self.precision, PRECISIONS, " or None")

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


def _check_block(options: _Options, policies: tuple[Policy, ...]) -> None:
    """Refuse options that a block cannot have."""
    if options.policy not in policies or options.precision not in (None, "default"):
        raise NotImplementedError(
            f"[mlx_ane.convert] granularity 'block' got policy {options.policy!r} and "
            f"precision {options.precision!r}, need {policies[0]!r} and 'default'; use "
            f"granularity 'layer' for others."
        )


def _decide_block(
    site: Site,
    predicate: Predicate | None,
    defaults: _Options,
    report: ConversionReport,
) -> dict[str, Any] | None:
    """Settings of a block, or None; the report learns what was decided."""
    options, module = defaults, site.module
    if predicate is not None:
        answer = predicate(site.path, module)
        if answer is False or answer is None:
            return None  # its layers were asked about too
        options = defaults.updated(site.path, answer)
        _check_block(options, ("all", defaults.policy))
    report.converted.append(
        ConvertedLayer(
            site.path,
            block_class(type(module)).__name__,
            (),
            module,
            site.aliases,
        )
    )
    return {"_device": options.device}


def _estimate(
    model: nn.Module,
    granularity: Granularity,
    options: _Options,
    objective: Objective,
    batch_shape: Any,
    report: ConversionReport,
) -> None:
    """Has the report say which granularity is used, why, and what would be faster."""
    auto = granularity == "auto"
    report.granularity = "block" if granularity == "block" else "layer"
    device = resolve(options.device, "convert")
    why = ""
    if device == "cpu" or options.precision == "exact":
        why = "the CPU runs layers"
    elif options.precision == "high":
        why = "blocks have no precision 'high'"
    elif options.policy == "frozen":
        why = "blocks have no policy 'frozen'"
    elif auto or batch_shape is not None:
        shapes = checked_shapes(batch_shape or (1, DEFAULT_ROWS), "convert")
        try:
            if device == "ane":
                found = planned(model, shapes, device=device)
            else:  # what the emulated engine takes says nothing of its chip
                found = planned(model, shapes, _ext.device_info(device)["chip"])
        except ValueError:
            if batch_shape is not None:
                raise
            why = f"the model takes no {DEFAULT_ROWS} tokens; pass batch_shape"
        else:
            estimate, name = found.largest, found.name
            report.estimate, report.chip = estimate, name
            use_gpu = options.policy == "auto" and objective != "free_gpu"
            if auto:
                chosen = choose_granularity(estimate, name, use_gpu)
                report.granularity, why = chosen
            report.hint = hint(estimate, name, "block" if auto else granularity)
    if auto:
        report.why = f"granularity {report.granularity!r}: {why}"


#: Measures where a plain layer should run, by its path, for these options.
_Tune = Callable[[str, nn.Module, _Options], Decision]


def _tuning(
    model: nn.Module, sites: list[Site], objective: Objective, batch_shape: Any
) -> _Tune:
    """The model is traced only if some layer's policy is "auto"."""
    checked_word("convert", "objective", objective, OBJECTIVES)

    @cache
    def tuner() -> Tuner:
        layers = [
            (site.path, site.module)
            for site in sites
            if holds_matrix(site.module) and why_not(site.module, site.parent) is None
        ]
        return Tuner(model, layers, objective, batch_shape)

    return lambda path, module, options: tuner().decide(
        path, module, options.device, options.precision or "default"
    )


def _decide(
    site: Site,
    predicate: Predicate | None,
    defaults: _Options,
    tune: _Tune,
    report: ConversionReport,
) -> dict[str, Any] | None:
    """Settings of a converted layer, or None; the report learns what was decided."""
    module = site.module
    if not holds_matrix(module):
        return None
    options, reason = defaults, why_not(module, site.parent)
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
            SkippedLayer(
                site.name, type(module).__name__, product_shape(module), reason
            )
        )
        return None
    device = decision.device if decision else options.device
    report.converted.append(
        ConvertedLayer(
            site.path,
            CLASSES[type(module)].__name__,
            product_shape(module),
            module,
            site.aliases,
            decision,
        )
    )
    return {
        "_device": device,
        "_precision": options.precision or "default",
        "_only_frozen": options.policy == "frozen",
    }


def _check_arrays(path: str, module: nn.Module) -> None:
    """Shapes that belong together, so that a bad checkpoint is named here."""
    n, k = product_shape(module)
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

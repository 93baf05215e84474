"""verify(): how far a converted model is from plain MLX, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from mlx_ane import _ext
from mlx_ane._watch import watching
from mlx_ane.convert import _find, _shape, _Site
from mlx_ane.nn import _Placed, to_plain
from mlx_ane.report import table

#: |dot product| from which an engine returns infinity or zero, on any chip.
CLIFF: float = _ext.planning.limits("h16")["overflow_from"]

#: Rows of x and of W are scaled to norms of at most 2^7, so that no sum of their
#: products passes 2^14 (log2_max_sum in src/mil/limits.h).
LOG2_NORM: int = _ext.planning.limits("h16")["log2_max_sum"] // 2

#: Largest ||y - ref|| / ||ref|| that passes: by device, and by the output's dtype,
#: whose rounding no device can avoid.
FORWARD_TOLERANCE = {"ane": 2e-3, "emulated": 2e-3, "cpu": 1e-5}
DTYPE_TOLERANCE = {mx.float32: 0.0, mx.float16: 1e-3, mx.bfloat16: 8e-3}
#: Largest ||g - ref|| / ||ref|| of gradients; 4e-2 is a cosine of 0.999.
GRADIENT_TOLERANCE = 4e-2


@dataclass
class LayerCheck:
    """What verify found about one layer."""

    path: str
    #: (N, K)
    shape: tuple[int, ...]
    device: str
    calls: int = 0
    #: ||y - ref|| / ||ref|| against float64, the worst call.
    forward_error: float = 0.0
    #: The same of the weight's gradient in the whole model; None if frozen.
    gradient_error: float | None = None
    #: log2(cliff / max sum |x_k w_k|): below 0, the engine needs our scaling.
    margin_bits: float = math.inf
    #: Pieces that the K products of an output element are summed in.
    k_splits: int = 1
    #: Smallest and largest log2 of what rows of x, and of W, were multiplied with
    #: for the engine; None where no call was for it.
    x_scales: tuple[int, int] | None = None
    weight_scales: tuple[int, int] | None = None
    #: Why the layer fails; empty if it passes.
    reasons: list[str] = field(default_factory=list)
    layer: Any = field(default=None, repr=False, compare=False)

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong with the layer."""
        return not self.reasons


@dataclass
class VerificationReport:
    """Converted against plain MLX: layers, losses and gradients of the model."""

    layers: list[LayerCheck]
    #: ||output - plain|| / ||plain|| of the whole model.
    output_error: float
    loss: float
    plain_loss: float
    #: Over all trainable parameters; None if everything is frozen.
    gradient_error: float | None
    #: Device calls that failed and were recomputed meanwhile, by cause.
    fallbacks: dict[str, int]

    @property
    def passed(self) -> bool:
        """Whether every layer passed and no device call failed."""
        return all(layer.passed for layer in self.layers) and not self.fallbacks

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        layers = [
            {k: v for k, v in vars(check).items() if k != "layer"}
            for check in self.layers
        ]
        return {**vars(self), "layers": layers, "passed": self.passed}

    def __str__(self) -> str:
        rows = [HEAD, *map(_row, self.layers)]
        gradient = (
            "none (all frozen)"
            if self.gradient_error is None
            else f"{self.gradient_error:.1e}"
        )
        fallbacks = "".join(f"; FALLBACK {c}: {n}" for c, n in self.fallbacks.items())
        return "\n".join(
            [
                *table(rows),
                "",
                f"model: output {self.output_error:.1e}, gradient {gradient}, loss "
                f"{self.loss:.6g} (plain {self.plain_loss:.6g}){fallbacks}: "
                f"{'PASS' if self.passed else 'FAIL'}",
            ]
        )


def verify(
    model: nn.Module, *inputs: Any, loss: Callable[..., Any] | None = None
) -> VerificationReport:
    """Compare a converted model with the plain one on the same inputs.

    Runs the model once with each layer checked against NumPy in float64, then its
    gradients twice: converted, and with the plain layers in place. The model is
    left as it was. Plain MLX is slow on Linux: give a small batch.

    Args:
        model (nn.Module): A model that :func:`mlx_ane.convert` changed.
        *inputs: Arguments of the model, or of ``loss`` after the model.
        loss (callable, optional): ``loss(model, *inputs)``, a scalar or a tuple
            that begins with it. None takes the mean square of the outputs.

    Returns:
        VerificationReport: PASS or FAIL with reasons; printing it gives a table.

    Raises:
        ValueError: If the model has no converted layer.

    Example:
        >>> report = ane.verify(model, x)
        >>> report.passed
        True
    """
    sites = [site for site in _find(model) if isinstance(site.module, _Placed)]
    if not sites:
        raise ValueError(
            "[mlx_ane.verify] the model has no converted layer; convert it first."
        )
    before = _fallbacks()
    checks = {id(s.module): _new_check(s) for s in sites}
    scalar = loss or _mean_square
    with _same_randomness() as rewind:
        with watching([(checks[id(s.module)], s.module) for s in sites], _compare):
            output = model(*inputs) if loss is None else scalar(model, *inputs)
            mx.eval(output)
        rewind()
        value, gradients = _value_and_gradients(model, scalar, inputs)
        with _plain_layers(sites):
            rewind()
            reference = model(*inputs) if loss is None else scalar(model, *inputs)
            mx.eval(reference)
            rewind()
            plain_value, plain = _value_and_gradients(model, scalar, inputs)
    for site in sites:
        _judge(site, checks[id(site.module)], gradients, plain)
    return VerificationReport(
        layers=list(checks.values()),
        output_error=_tree_error(output, reference),
        loss=value,
        plain_loss=plain_value,
        gradient_error=_dict_error(gradients, plain) if plain else None,
        fallbacks=_fallbacks(since=before),
    )


def _mean_square(model: nn.Module, *inputs: Any) -> mx.array:
    outputs = [a for _, a in tree_flatten(model(*inputs)) if _is_float(a)]
    return sum(
        (mx.mean(mx.square(a.astype(mx.float32))) for a in outputs), mx.array(0.0)
    )


def _is_float(value: object) -> bool:
    return isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating)


def _value_and_gradients(
    model: nn.Module, loss: Callable[..., Any], inputs: tuple[Any, ...]
) -> tuple[float, dict[str, mx.array]]:
    """The loss, and the gradients of trainable parameters by path."""

    def scalar(*args: Any) -> mx.array:
        value = loss(model, *args)
        return value[0] if isinstance(value, tuple) else value

    parameters = model.trainable_parameters()
    if not tree_flatten(parameters):
        return float(scalar(*inputs)), {}
    value, gradients = nn.value_and_grad(model, scalar)(*inputs)
    mx.eval(value, gradients)
    model.update(parameters)  # value_and_grad leaves copies in their place
    return float(value), dict(tree_flatten(gradients))


@contextmanager
def _same_randomness() -> Iterator[Callable[[], None]]:
    """Yields a function that rewinds MLX's generator; restores it at the end."""
    state: Any = mx.random.state
    saved = [mx.array(key) for key in state]

    def rewind() -> None:
        for key, value in zip(state, saved, strict=True):
            key[:] = value  # in place: MLX holds these very arrays

    try:
        yield rewind
    finally:
        rewind()


@contextmanager
def _plain_layers(sites: list[_Site]) -> Iterator[None]:
    """The plain layers in place of ours, which come back at the end."""
    try:
        for site in sites:
            site.replace(to_plain(site.module))
        yield
    finally:
        for site in sites:
            site.replace(site.module)


def _new_check(site: _Site) -> LayerCheck:
    n, k = _shape(to_plain(site.module))
    device = site.module.device
    limits = None if device == "cpu" else _ext.planning.device_limits(device)
    splits = -(-k // limits["max_contraction"]) if limits else 1
    return LayerCheck(site.path, (n, k), device, k_splits=splits, layer=site.module)


def _compare(check: LayerCheck, x: mx.array, y: mx.array) -> None:
    """Enter one call's error and margin. x: (..., K), y: (..., N)."""
    check.calls += 1
    n, k = check.shape
    bias = check.layer.get("bias")
    w = _numpy(_weight(check.layer))
    x_rows, got = _numpy(x).reshape(-1, k), _numpy(y).reshape(-1, n)
    if not x_rows.size:
        return
    if not (np.isfinite(x_rows).all() and np.isfinite(w).all()):
        check.reasons.append("x or weight is not finite")
        return
    expected = x_rows @ w.T + (0.0 if bias is None else _numpy(bias))
    if not np.isfinite(got).all():
        check.reasons.append("the output is not finite")
    error = relative_error(got, expected)
    check.forward_error = max(check.forward_error, error)
    tolerance = max(FORWARD_TOLERANCE[check.device], DTYPE_TOLERANCE.get(y.dtype, 0.0))
    if not error <= tolerance:
        check.reasons.append(f"forward error {error:.1e}, need {tolerance:.0e}")
    if check.device != "cpu" and len(x_rows) >= _min_rows():
        check.weight_scales = _scales(w)
        check.x_scales = _scales(x_rows, check.x_scales)
    largest = float((np.abs(x_rows) @ np.abs(w).T).max())
    if largest > 0.0:
        check.margin_bits = min(check.margin_bits, math.log2(CLIFF / largest))


def _min_rows() -> int:
    """Rows below which a call is placed on the BLAS."""
    return int(_ext.planning.min_rows())


def _scales(rows: Any, so_far: tuple[int, int] | None = None) -> tuple[int, int]:
    """The range of the exponents that packing chooses for these rows."""
    rows = np.ascontiguousarray(rows, np.float32)
    packed = np.empty(rows.shape, np.float16)
    found = _ext.kernels.pack_scaled(rows, packed, LOG2_NORM)
    return min(*found, *(so_far or found)), max(*found, *(so_far or found))


def _weight(layer: nn.Module) -> mx.array:
    """The (N, K) weight of a layer, dequantised if need be."""
    if "scales" not in layer:
        return layer["weight"]
    return mx.dequantize(
        layer["weight"],
        layer["scales"],
        layer.get("biases"),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )


def _judge(
    site: _Site,
    check: LayerCheck,
    gradients: dict[str, mx.array],
    plain: dict[str, mx.array],
) -> None:
    """Enter the error of the weight's gradient; reasons become distinct."""
    path = f"{site.path}.weight"
    if path in plain:
        error = relative_error(_numpy(gradients[path]), _numpy(plain[path]))
        check.gradient_error = error
        if not error <= GRADIENT_TOLERANCE:
            check.reasons.append(
                f"gradient error {error:.1e}, need {GRADIENT_TOLERANCE:.0e}"
            )
    check.reasons = list(dict.fromkeys(check.reasons))


def _numpy(array: mx.array) -> Any:
    return np.asarray(array.astype(mx.float32), dtype=np.float64)


def relative_error(got: Any, expected: Any) -> float:
    """||got - expected|| / ||expected||, or ||got|| where expected is 0."""
    scale = float(np.linalg.norm(expected))
    difference = np.asarray(got, np.float64) - expected
    return float(np.linalg.norm(difference)) / (scale or 1.0)


def _dict_error(got: dict[str, mx.array], expected: dict[str, mx.array]) -> float:
    difference = sum(
        float(np.sum((_numpy(got[key]) - _numpy(value)) ** 2))
        for key, value in expected.items()
    )
    scale = sum(float(np.sum(_numpy(value) ** 2)) for value in expected.values())
    return math.sqrt(difference / (scale or 1.0))


def _tree_error(got: Any, expected: Any) -> float:
    return _dict_error(
        {key: a for key, a in tree_flatten({"": got}) if _is_float(a)},
        {key: a for key, a in tree_flatten({"": expected}) if _is_float(a)},
    )


def _fallbacks(since: dict[str, int] | None = None) -> dict[str, int]:
    """Failed device calls by cause, less those counted `since` then."""
    prefix = "fallback_"
    counts = {
        name[len(prefix) :]: n
        for name, n in _ext.counters().items()
        if name.startswith(prefix)
    }
    return {c: n for c in counts if (n := counts[c] - (since or {}).get(c, 0))}


HEAD = (
    *("layer", "N x K", "device", "forward", "gradient"),
    *("margin", "K splits", "log2 scales", "verdict"),
)


def _row(layer: LayerCheck) -> tuple[str, ...]:
    verdict = "PASS" if layer.passed else "FAIL: " + "; ".join(layer.reasons)
    gradient = layer.gradient_error
    return (
        layer.path,
        " x ".join(map(str, layer.shape)),
        layer.device,
        f"{layer.forward_error:.1e}" if layer.calls else "not called",
        "frozen" if gradient is None else f"{gradient:.1e}",
        f"{layer.margin_bits:+.1f} bits" if layer.calls else "-",
        str(layer.k_splits),
        f"x {_range(layer.x_scales)}, W {_range(layer.weight_scales)}",
        verdict,
    )


def _range(scales: tuple[int, int] | None) -> str:
    if scales is None:
        return "-"
    low, high = scales
    return str(low) if low == high else f"{low}..{high}"

"""verify(): how far a converted model is from plain MLX, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from mlx_ane import _ext
from mlx_ane._attention import attention_device
from mlx_ane._console import table
from mlx_ane._exchange import Exchanged, classes, is_exchanged, originals
from mlx_ane._layers import Site, find_sites, product_method, product_shape
from mlx_ane._preserve import preserved
from mlx_ane._watch import returns, watching
from mlx_ane.blocks import BlockModule
from mlx_ane.nn import Placed

#: |dot product| from which an engine returns infinity or zero, on any chip.
CLIFF: float = _ext.planning.limits("h16")["overflow_from"]

#: Rows of x and of W are scaled to norms of at most 2^7, so that no sum of their
#: products passes 2^14 (log2_max_sum in src/mil/limits.h).
LOG2_NORM: int = _ext.planning.limits("h16")["log2_max_sum"] // 2

#: Largest ||y - ref|| / ||ref|| of a layer that passes: by device, and by the
#: output's dtype, whose rounding no device can avoid.
FORWARD_TOLERANCE = {"ane": 2e-3, "emulated": 2e-3, "cpu": 1e-5}
#: The same of a whole block, whose values between its products are fp16 too.
BLOCK_TOLERANCE = 4e-3
DTYPE_TOLERANCE = {mx.float32: 0.0, mx.float16: 1e-3, mx.bfloat16: 8e-3}
#: The same of the whole model's output and loss, and of all gradients together,
#: without noise. Llamas of 28 layers have 2e-3 and 3e-3 on `emulated`, 6e-7 and
#: 8e-7 on `cpu` (tests/test_verify.py); 4e-2 is a cosine of 0.999.
OUTPUT_TOLERANCE = {"ane": 1e-2, "emulated": 1e-2, "cpu": 1e-4}
GRADIENT_TOLERANCE = {"ane": 4e-2, "emulated": 4e-2, "cpu": 1e-3}
#: Of one parameter's gradient, so that a layer is not blamed for another's fault.
PARAMETER_TOLERANCE = 4e-2
#: Units of noise that are added to these: both round as often, with errors of their
#: own.
NOISE_FACTOR = 2.0
#: Gradients are measured against their norm, or this part of the norm of all where
#: they are less: that of a key's bias is zero but for rounding.
GRADIENT_FLOOR = 1e-4

#: Elements of a block, so that float64 copies of one take little memory.
BLOCK = 1 << 17
#: Reasons of the whole model that are printed.
SHOWN = 4
HALVES = (mx.float16, mx.bfloat16)


@dataclass
class LayerCheck:
    """What verify found about one layer."""

    path: str
    #: (N, K)
    shape: tuple[int, ...]
    device: str
    calls: int = 0
    #: Calls that the device was not asked for, by reason.
    placed: dict[str, int] = field(default_factory=dict)
    #: ||y - ref|| / ||ref|| against float64, the worst call.
    forward_error: float = 0.0
    #: The largest that passes; None until it was called.
    forward_tolerance: float | None = None
    #: The same of the weight's gradient in the whole model; None if frozen.
    gradient_error: float | None = None
    gradient_tolerance: float | None = None
    #: log2(cliff / max sum |x_k w_k|): below 0, the engine needs our scaling.
    margin_bits: float = math.inf
    #: Pieces that the K products of an output element are summed in.
    k_splits: int = 1
    #: Smallest and largest log2 of what rows of x, and of W, were multiplied with
    #: for the engine; None where no call was for it.
    x_scales: tuple[int, int] | None = None
    weight_scales: tuple[int, int] | None = None
    #: Why the layer fails; empty if nothing is wrong with it.
    reasons: list[str] = field(default_factory=list)
    layer: Any = field(default=None, repr=False, compare=False)

    @property
    def failed(self) -> bool:
        """Whether something is wrong with the layer, wherever it ran."""
        return bool(self.reasons)

    @property
    def passed(self) -> bool:
        """Whether the layer ran on its device and nothing is wrong with it."""
        return self.verdict == "PASS"

    @property
    def verdict(self) -> str:
        """PASS, FAIL with the reasons, or why there is nothing to judge."""
        if self.failed:
            return "FAIL: " + "; ".join(self.reasons)
        if not self.calls:
            return "not called"
        if sum(self.placed.values()) >= self.calls:
            return f"not on the device ({', '.join(self.placed)})"
        return "PASS"


@dataclass
class VerificationReport:
    """Converted against plain MLX: layers, losses and gradients of the model.

    Errors are relative to plain MLX computed in float32. Noise is how far rounding
    takes plain MLX from that: its own dtype if that is a half; for a float32 model on
    an engine, inputs of its layers rounded to bfloat16; else 0.
    """

    layers: list[LayerCheck]
    #: ||output - plain|| / ||plain|| of the whole model.
    output_error: float
    output_noise: float
    loss: float
    #: In the model's own dtype.
    plain_loss: float
    #: Over all trainable parameters; None if everything is frozen.
    gradient_error: float | None
    gradient_noise: float | None
    #: Device calls that failed and were recomputed meanwhile, by cause.
    fallbacks: dict[str, int]
    #: Why the model as a whole fails, beside its layers.
    reasons: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the model and its layers are right, and some ran on their device.

        Layers that were not called or not on their device neither pass nor fail; a
        report of such layers alone does not pass, since it says nothing.
        """
        failed = any(layer.failed for layer in self.layers)
        ran = any(layer.passed for layer in self.layers)
        return ran and not (failed or self.fallbacks or self.reasons)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        layers = [
            {k: v for k, v in vars(check).items() if k != "layer"}
            | {"verdict": check.verdict, "passed": check.passed}
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
        noise = (
            f", noise {self.output_noise:.1e} and {self.gradient_noise or 0.0:.1e}"
            if self.output_noise
            else ""
        )
        shown = self.reasons[:SHOWN]
        if more := len(self.reasons) - len(shown):
            shown.append(f"and {more} more")
        reasons = "".join(f"; {reason}" for reason in shown)
        reasons += "".join(f"; FALLBACK {c}: {n}" for c, n in self.fallbacks.items())
        if not any(layer.passed for layer in self.layers):
            reasons += "; no layer ran on its device"
        return "\n".join(
            [
                *table(rows),
                "",
                f"model: output {self.output_error:.1e}, gradient {gradient}{noise}, "
                f"loss {self.loss:.6g} (plain {self.plain_loss:.6g}){reasons}: "
                f"{'PASS' if self.passed else 'FAIL'}",
            ]
        )


def verify(
    model: nn.Module,
    *inputs: Any,
    loss: Callable[..., Any] | None = None,
    plain: Callable[[], AbstractContextManager[Any]] | None = None,
) -> VerificationReport:
    """Compare a converted model with the plain one on the same inputs.

    Runs the model with each layer checked against NumPy in float64, then output,
    loss and gradients: of plain MLX in float32; of plain MLX as rounding takes it from
    that, which is the unit (see :class:`VerificationReport`); and converted. Two units
    and the device's tolerance pass.
    Model, inputs and MLX's random state are left as they were. Plain MLX is slow on
    Linux: give a small batch.

    Args:
        model (nn.Module): A model that :func:`mlx_ane.convert` changed.
        *inputs: Arguments of the model, or of ``loss`` after the model.
        loss (callable, optional): ``loss(model, *inputs)``, a scalar or a tuple
            that begins with it. None takes the mean square of the outputs. It runs
            four times at most, each time from the same state of the model.
        plain (callable, optional): ``plain()`` returns a context manager that is
            entered while the plain model runs, to take away what was put in place
            of MLX beside what :func:`mlx_ane.convert` changed.

    Returns:
        VerificationReport: PASS or FAIL with reasons; printing it gives a table.

    Raises:
        ValueError: If the model has no converted layer.

    Example:
        >>> report = ane.verify(model, x)
        >>> report.passed
        True
    """
    exchanged = [s for s in find_sites(model) if is_exchanged(s.module)]
    sites = [s for s in exchanged if isinstance(s.module, (Placed, BlockModule))]
    if not sites:
        raise ValueError(
            "[mlx_ane.verify] the model has no converted layer; convert it first."
        )
    scalar = loss or _mean_square
    checks = {site.path: _new_check(site) for site in sites}
    blocks = [c for c in checks.values() if isinstance(c.layer, BlockModule)]
    products = [c for c in checks.values() if c not in blocks]
    before = _fallbacks()
    noise = None
    with preserved(model, inputs, loss) as rewind:
        with (
            _placements(checks.values()),
            watching([(check, check.layer) for check in products], _compare),
            classes((check.layer, _compared(check)) for check in blocks),
        ):
            mx.eval(scalar(model, *inputs))
        rewind()
        with originals(s.module for s in exchanged), (plain or nullcontext)():
            if _has_halves(model):
                with _in_float32(model):
                    reference = _run(model, scalar, _float32(inputs))
                rewind()
                noise = _run(model, scalar, inputs).against(reference)
            else:
                reference = _run(model, scalar, inputs)
                rewind()
                if engine := [c.layer for c in products if c.device != "cpu"]:
                    with classes((layer, _rounding(type(layer))) for layer in engine):
                        noise = _run(model, scalar, inputs).against(reference)
        rewind()
        got = _run(model, scalar, inputs).against(reference)
    attending = filter(None, (attention_device(s.module) for s in exchanged))
    devices = {*attending, *(check.device for check in checks.values())}
    report = _judged(checks, devices, got, noise, reference.loss)
    report.fallbacks = _fallbacks(since=before)
    if noise is not None and _has_halves(model):
        report.plain_loss = noise.loss
    return report


@dataclass
class _Errors:
    """A loss, and how far a run of the model is from the reference, relative to it."""

    loss: float
    output: float
    #: Of all trainable parameters together, and of each by path.
    gradient: float
    gradients: dict[str, float]


@dataclass
class _Run:
    """What the model computed: outputs and gradients by path."""

    loss: float
    output: dict[str, mx.array]
    gradients: dict[str, mx.array]

    def against(self, reference: _Run) -> _Errors:
        """The errors of this run."""
        error, norm = _squares(self.output, reference.output)
        output = _ratio(sum(error.values()), sum(norm.values()))
        error, norm = _squares(self.gradients, reference.gradients)
        total = sum(norm.values())
        return _Errors(
            self.loss,
            output,
            _ratio(sum(error.values()), total),
            {
                path: _ratio(error[path], max(norm[path], GRADIENT_FLOOR**2 * total))
                for path in error
            },
        )


def _run(model: nn.Module, scalar: Callable[..., Any], inputs: tuple[Any, ...]) -> _Run:
    """One pass: the loss, what the model returned, and gradients."""
    outputs: list[Any] = []

    def value_of(*args: Any) -> mx.array:
        outputs.clear()
        with returns(model, outputs):
            value = scalar(model, *args)
        if not outputs:  # a loss that calls parts of the model
            outputs.append(value)
        return value[0] if isinstance(value, tuple) else value

    if tree_flatten(model.trainable_parameters()):
        value, gradients = nn.value_and_grad(model, value_of)(*inputs)
    else:
        value, gradients = value_of(*inputs), {}
    mx.eval(value, gradients, outputs)
    floats = {path: a for path, a in tree_flatten(outputs) if _is_float(a)}
    return _Run(float(value), floats or {"loss": value}, dict(tree_flatten(gradients)))


def _mean_square(model: nn.Module, *inputs: Any) -> mx.array:
    outputs = [a for _, a in tree_flatten(model(*inputs)) if _is_float(a)]
    return sum(
        (mx.mean(mx.square(a.astype(mx.float32))) for a in outputs), mx.array(0.0)
    )


def _is_float(value: object) -> bool:
    return isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating)


# -- plain MLX in another dtype -----------------------------------------------------


def _has_halves(model: nn.Module) -> bool:
    """Whether some array of the model is in float16 or bfloat16."""
    arrays = [a for _, a in tree_flatten(model.state) if isinstance(a, mx.array)]
    return any(array.dtype in HALVES for array in arrays)


def _float32(tree: Any) -> Any:
    """Lists, tuples and dicts with their arrays of floats in float32."""
    if isinstance(tree, mx.array) and tree.dtype in HALVES:
        return tree.astype(mx.float32)
    if type(tree) in (list, tuple):
        return type(tree)(map(_float32, tree))
    if type(tree) is dict:
        return {key: _float32(item) for key, item in tree.items()}
    return tree


@contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """The model computes in float32 while this is open; its arrays are not put back.

    Weights of layers stay as they are and are cast by blocks when they are used.
    """
    by_blocks: dict[type, type[Any]] = {nn.Linear: _Linear, nn.Embedding: _Embedding}
    pairs = []
    for site in find_sites(model):
        module, cls = site.module, by_blocks.get(type(site.module))
        if cls and module["weight"].dtype in HALVES:
            pairs.append((module, cls))
        for key, value in list(module.items()):
            if not (cls and key == "weight"):
                module[key] = _float32(value)
    with classes(pairs):
        yield


class _Linear(nn.Linear):
    """Computes in float32, with little of the weight in it at a time."""

    def __call__(self, x: mx.array) -> mx.array:
        y = _product(x, self["weight"])
        return y + self["bias"] if "bias" in self else y


class _Embedding(nn.Embedding):
    """The same for a table."""

    def __call__(self, x: mx.array) -> mx.array:
        return self["weight"][x].astype(mx.float32)

    def as_linear(self, x: mx.array) -> mx.array:
        return _product(x, self["weight"])


def _product(x: mx.array, weight: mx.array) -> mx.array:
    """x (..., K) @ weight (N, K).T in float32, the weight cast by blocks of rows."""
    # Without checkpoint the gradient of x would keep every cast block.
    block = mx.checkpoint(lambda x, w: x @ w.astype(mx.float32).T)
    parts = mx.split(weight, [rows.start for rows in _blocks(*weight.shape)][1:])
    return mx.concatenate([block(x.astype(mx.float32), w) for w in parts], axis=-1)


def _rounding(cls: type[Any]) -> type[Any]:
    """A layer class that rounds x to bfloat16, as coarse as the engine's products."""
    name = product_method(cls)
    product = getattr(cls, name)

    def rounded(self: nn.Module, x: mx.array) -> mx.array:
        y: mx.array = product(self, x.astype(mx.bfloat16).astype(x.dtype))
        return y

    return type(cls.__name__, (cls,), {name: rounded})


# -- layers ---------------------------------------------------------------------------


def _compared(check: LayerCheck) -> type[Any]:
    """The class of a block that compares what it returns with plain MLX."""
    cls: Any = type(check.layer)

    def compared(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        check.calls += 1
        # Those that are watched are of subclasses of ours.
        plain = [(m, m._original) for m in self.modules() if isinstance(m, Exchanged)]
        with preserved(self, args, kwargs) as rewind:  # both draw the same numbers
            got = cls.__call__(self, *args, **kwargs)
            mx.eval(got)
            rewind()
            with classes(plain):
                expected = self(*args, **kwargs)
        arrays = [dict(tree_flatten([tree])) for tree in (got, expected)]
        error, norm = _squares(
            *({k: v for k, v in a.items() if _is_float(v)} for a in arrays)
        )
        relative = _ratio(sum(error.values()), sum(norm.values()))
        check.forward_error = max(check.forward_error, relative)
        dtypes = {v.dtype for v in arrays[0].values() if _is_float(v)}
        tolerance = BLOCK_TOLERANCE + max(DTYPE_TOLERANCE[d] for d in dtypes)
        check.forward_tolerance = tolerance
        if not relative <= tolerance:
            check.reasons.append(f"forward error {relative:.1e}, need {tolerance:.0e}")
        return got

    return type(cls.__name__, (cls,), {"__call__": compared})


def _new_check(site: Site) -> LayerCheck:
    layer: Any = site.module
    if isinstance(layer, BlockModule):
        return LayerCheck(site.path, (), layer.device, layer=layer)
    n, k = product_shape(layer)
    device = layer.device
    limits = None if device == "cpu" else _ext.planning.device_limits(device)
    splits = -(-k // limits["max_contraction"]) if limits else 1
    return LayerCheck(site.path, (n, k), layer.device, k_splits=splits, layer=layer)


@contextmanager
def _placements(checks: Iterable[LayerCheck]) -> Iterator[None]:
    """Each check learns why its layer's calls were not for the device meanwhile."""
    names: dict[str, LayerCheck] = {}
    for check in checks:
        # Layers made by hand have no name, and copies of a layer have its name.
        if check.layer._name in ("", *names):
            check.layer._name = f"{check.path} (verify)"
        names[check.layer._name] = check
    before = _ext.layer_counters()
    yield
    after = _ext.layer_counters()
    for name, check in names.items():
        for cause, count in after.get(name, {}).items():
            placed = int(count - before.get(name, {}).get(cause, 0))
            if placed and cause.startswith("placed_") and check.device != "cpu":
                check.placed[cause.removeprefix("placed_")] = placed


def _compare(check: LayerCheck, x: mx.array, y: mx.array) -> None:
    """Enter one call's error and margin, by blocks. x: (..., K), y: (..., N)."""
    check.calls += 1
    n, k = check.shape
    rows, got = x.reshape(-1, k), y.reshape(-1, n)
    bias = check.layer.get("bias")
    on_engine = check.device != "cpu" and len(rows) >= _min_rows()
    error = norm = largest = 0.0
    for i in _blocks(len(rows), k):
        x_block = _numpy(rows[i])
        if on_engine:
            check.x_scales = _scales(x_block, check.x_scales)
        for j in _blocks(n, k):
            w = _numpy(_weight(check.layer, j))
            expected = x_block @ w.T
            if not (np.isfinite(x_block).all() and np.isfinite(w).all()):
                check.reasons.append("x or weight is not finite")
                return
            if on_engine and i.start == 0:
                check.weight_scales = _scales(w, check.weight_scales)
            largest = max(largest, float((np.abs(x_block) @ np.abs(w).T).max()))
            expected += 0.0 if bias is None else _numpy(bias[j])
            error += float(np.sum((_numpy(got[i, j]) - expected) ** 2))
            norm += float(np.sum(expected**2))
    if not math.isfinite(error):
        check.reasons.append("the output is not finite")
    relative = _ratio(error, norm)
    check.forward_error = max(check.forward_error, relative)
    tolerance = max(FORWARD_TOLERANCE[check.device], DTYPE_TOLERANCE.get(y.dtype, 0.0))
    check.forward_tolerance = tolerance
    if not relative <= tolerance:
        check.reasons.append(f"forward error {relative:.1e}, need {tolerance:.0e}")
    if largest > 0.0:
        check.margin_bits = min(check.margin_bits, math.log2(CLIFF / largest))


def _blocks(length: int, width: int) -> Iterator[slice]:
    """Slices of so many rows of this width that one is a block."""
    step = max(1, BLOCK // width)
    return (slice(i, min(i + step, length)) for i in range(0, length, step))


def _min_rows() -> int:
    """Rows below which a call is placed on the BLAS."""
    return int(_ext.planning.min_rows())


def _scales(rows: Any, so_far: tuple[int, int] | None = None) -> tuple[int, int]:
    """The range of the exponents that packing chooses for these rows."""
    rows = np.ascontiguousarray(rows, np.float32)
    packed = np.empty(rows.shape, np.float16)
    found = _ext.kernels.pack_scaled(rows, packed, LOG2_NORM)
    return min(*found, *(so_far or found)), max(*found, *(so_far or found))


def _weight(layer: nn.Module, rows: slice) -> mx.array:
    """Rows of the (N, K) weight of a layer, dequantised if need be."""
    if "scales" not in layer:
        return layer["weight"][rows]
    biases = layer.get("biases")
    return mx.dequantize(
        layer["weight"][rows],
        layer["scales"][rows],
        biases if biases is None else biases[rows],
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )


# -- verdicts -------------------------------------------------------------------------


def _judged(
    checks: dict[str, LayerCheck],
    devices: set[str],
    got: _Errors,
    noise: _Errors | None,
    loss: float,
) -> VerificationReport:
    """The report, with the reasons why layers and the model fail."""
    device = max(devices, key=OUTPUT_TOLERANCE.__getitem__)
    noise = noise or _Errors(loss, 0.0, 0.0, dict.fromkeys(got.gradients, 0.0))
    reasons = []

    def allowed(noise: float, tolerance: float) -> float:
        return tolerance + (NOISE_FACTOR * noise if math.isfinite(noise) else 0.0)

    def wrong(error: float, noise: float, tolerance: float) -> str:
        limit = allowed(noise, tolerance)
        return "" if error <= limit else f"error {error:.1e}, need {limit:.1e}"

    if why := wrong(got.output, noise.output, OUTPUT_TOLERANCE[device]):
        reasons.append(f"output {why}")
    scale = max(abs(loss), 1.0)
    far, noise_far = (abs(e.loss - loss) / scale for e in (got, noise))
    if not math.isfinite(got.loss):
        reasons.append("the loss is not finite")
    elif why := wrong(far, max(noise_far, noise.output), OUTPUT_TOLERANCE[device]):
        reasons.append(f"loss {why}")
    if why := wrong(got.gradient, noise.gradient, GRADIENT_TOLERANCE[device]):
        reasons.append(f"gradient {why}")
    for path, error in sorted(got.gradients.items(), key=lambda item: -item[1]):
        layer, _, name = path.rpartition(".")
        check = checks.get(layer)
        if check is not None and name == "weight":
            check.gradient_error = error
            check.gradient_tolerance = allowed(
                noise.gradients[path], PARAMETER_TOLERANCE
            )
        if why := wrong(error, noise.gradients[path], PARAMETER_TOLERANCE):
            if check is None:
                reasons.append(f"gradient of {path}: {why}")
            else:
                check.reasons.append(f"gradient {why}")
    for check in checks.values():
        check.reasons = list(dict.fromkeys(check.reasons))
    return VerificationReport(
        layers=list(checks.values()),
        output_error=got.output,
        output_noise=noise.output,
        loss=got.loss,
        plain_loss=loss,
        gradient_error=got.gradient if got.gradients else None,
        gradient_noise=noise.gradient if got.gradients else None,
        fallbacks={},
        reasons=reasons,
    )


def _squares(
    got: dict[str, mx.array], expected: dict[str, mx.array]
) -> tuple[dict[str, float], dict[str, float]]:
    """||got - expected||² and ||expected||² of each array that is expected."""
    error, norm = {}, {}
    for path, array in expected.items():
        error[path], norm[path] = 0.0, 0.0
        if path not in got or got[path].shape != array.shape:
            error[path] = math.inf
            continue
        a, b = got[path].reshape(-1), array.reshape(-1)
        for block in _blocks(b.size, 1):
            reference = _numpy(b[block])
            error[path] += float(np.sum((_numpy(a[block]) - reference) ** 2))
            norm[path] += float(np.sum(reference**2))
    return error, norm


def _ratio(error: float, norm: float) -> float:
    """||error|| / ||norm|| of squares; ||error|| where the norm is 0."""
    return math.sqrt(error) / (math.sqrt(norm) or 1.0)


def relative_error(got: Any, expected: Any) -> float:
    """||got - expected|| / ||expected||, or ||got|| where expected is 0."""
    difference = np.asarray(got, np.float64) - expected
    return _ratio(float(np.sum(difference**2)), float(np.sum(np.square(expected))))


def _numpy(array: mx.array) -> Any:
    return np.asarray(array.astype(mx.float32), dtype=np.float64)


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
    gradient = layer.gradient_error
    return (
        layer.path,
        " x ".join(map(str, layer.shape)),
        layer.device,
        f"{layer.forward_error:.1e}" if layer.calls else "not called",
        "frozen" if gradient is None else f"{gradient:.1e}",
        f"{layer.margin_bits:+.1f} bits" if math.isfinite(layer.margin_bits) else "-",
        str(layer.k_splits),
        f"x {_range(layer.x_scales)}, W {_range(layer.weight_scales)}",
        layer.verdict,
    )


def _range(scales: tuple[int, int] | None) -> str:
    if scales is None:
        return "-"
    low, high = scales
    return str(low) if low == high else f"{low}..{high}"

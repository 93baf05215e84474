"""Op probes: which MIL operations and forms that blocks are written in are right here.

Each is a small MLX function, captured and translated as blocks are, run on the engine
by the variant that the self-test chose, and compared with MLX in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, reduce
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_ane import _ext
from mlx_ane.builder import FORMS
from mlx_ane.capture import capture, gradients, lowered
from mlx_ane.tape import Tape
from mlx_ane.translate import translate

_apple: Any = getattr(_ext, "apple", None)

Array = mx.array
#: Engines compute some functions from tables of 33 points (M6 study).
TOLERANCE = 2e-2
S, K = 64, 64


def _positive(x: Array) -> Array:
    return mx.abs(x) + 0.5


def _condition(x: Array, y: Array) -> Array:
    return mx.where(x > y, x, y * 0.5)


#: What shows each entry of `FORMS`, and of how many arrays. What no report is about
#: comes first.
FORM_PROBES: dict[str, tuple[Callable[..., Array], int]] = {
    "max": (lambda x: x - mx.max(x, -1, keepdims=True), 1),
    "maximum": (mx.maximum, 2),
    "sum": (lambda x: x - mx.sum(x, -1, keepdims=True) / K, 1),
    "rsqrt": (lambda x: x * mx.rsqrt(_positive(x)), 1),
    "sigmoid": (lambda x: x * mx.sigmoid(x), 1),
    "slice": (lambda x: x[..., 16:48] * 2.0, 1),
    "concat": (lambda x, y: mx.concatenate([x, y], -1) * 2.0, 2),
    "compare": (_condition, 2),
    "select": (_condition, 2),
}
OP_PROBES: dict[str, tuple[Callable[..., Array], int]] = {
    "matmul": (lambda x, y: x @ y.swapaxes(-1, -2), 2),
    "add": (lambda x, y: x + y * 0.5, 2),
    "sub, mul": (lambda x, y: (x - y) * y, 2),
    "real_div": (lambda x, y: x / _positive(y), 2),
    "exp": (lambda x: mx.exp(x) + x, 1),
    "erf": (lambda x: mx.erf(x) + x, 1),
    "tanh": (lambda x: mx.tanh(x) + x, 1),
    "abs": (lambda x: mx.abs(x) + x, 1),
    "log": (lambda x: mx.log(_positive(x)) + x, 1),
    "softmax": (lambda x: mx.softmax(x, -1) * 8.0, 1),
    "reshape, transpose": (
        lambda x: x.reshape(1, S, 4, K // 4).transpose(0, 2, 1, 3) * 2.0,
        1,
    ),
    "rms_norm": (lambda x: mx.fast.rms_norm(x, mx.ones(K), 1e-5), 1),
}
#: Input ports of one program: as reported, as a block with packed weights has, and as
#: one with a port for each.
PORTS = (2, 7, 20)


class _Mlp(nn.Module):
    """The feed-forward part of a Llama layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(K, 96, bias=False), nn.Linear(K, 96, bias=False)
        self.down = nn.Linear(96, K, bias=False)

    def __call__(self, x: Array) -> Array:
        return self.down(nn.silu(self.gate(x)) * self.up(x))


def _attention(q: Array, k: Array, v: Array) -> Array:
    """Two heads over arrays of (1, S, K)."""
    parts = [a.reshape(1, S, 2, K // 2).transpose(0, 2, 1, 3) for a in (q, k, v)]
    y = mx.fast.scaled_dot_product_attention(
        *parts, scale=(K // 2) ** -0.5, mask="causal"
    )
    return y.transpose(0, 2, 1, 3).reshape(1, S, K)


def _arrays(count: int) -> list[Array]:
    random = np.random.default_rng(count)
    return [
        mx.array(random.standard_normal((1, S, K), np.float32)) for _ in range(count)
    ]


Probe = Callable[[], tuple[Tape, list[Array]]]


def _joined(*x: Array) -> Array:
    return reduce(lambda a, b: a * 0.5 + b, x)


def _of(function: Callable[..., Any], count: int) -> tuple[Tape, list[Array]]:
    """The body of a function of so many arrays as a tape, and the body's inputs."""
    arrays = _arrays(count)
    captured = capture(function, *arrays)
    return lowered(captured.body), captured.arguments(*arrays)


def _gradient_of(function: Callable[..., Any], count: int) -> tuple[Tape, list[Array]]:
    """The same of the gradient of its first array."""
    arrays = _arrays(count)
    captured = capture(function, *arrays)
    inputs = captured.arguments(*arrays)
    first = captured.body.inputs.index(captured.data[0])
    return gradients(captured.body, [first]), [_arrays(4)[3], *inputs]


def probes() -> Iterator[tuple[str, Probe, dict[str, str]]]:
    """Name, tape and inputs, and forms of every probe, in order of importance."""
    for form, (function, count) in FORM_PROBES.items():
        for choice in FORMS[form][0]:
            yield (
                f"{form}={choice}",
                partial(_of, function, count),
                {form: choice},
            )
    for name, (function, count) in OP_PROBES.items():
        yield (
            name,
            partial(_of, function, count),
            {},
        )
    for ports in PORTS:
        yield f"ports={ports}", partial(_of, _joined, ports), {}
    with mx.stream(mx.cpu):
        mlp = _Mlp()
    for choice in FORMS["weights"][0]:
        yield (
            f"weights={choice}",
            partial(_of, mlp, 1),
            {"weights": choice},
        )
    yield "mlp, gradient", partial(_gradient_of, mlp, 1), {}
    yield "attention", partial(_of, _attention, 3), {}
    yield "attention, gradient", partial(_gradient_of, _attention, 3), {}


def run(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One finding a probe; before each, its name, so that a hang can be told."""
    forms: dict[str, str] = dict(spec.get("forms", {}))  # right in an earlier child
    for name, probe, own in probes():
        if name in spec["skip"]:
            continue
        yield {"test": "trying", "form": name, "passed": False}
        try:
            found = _measure(spec, probe, {**forms, **own})
        except (RuntimeError, ValueError, NotImplementedError) as error:
            found = {"passed": False, "error": str(error)}
        forms |= own if found["passed"] and _better(forms, own) else {}
        yield {"test": "probe", "form": name, **found}


def _better(forms: dict[str, str], own: dict[str, str]) -> bool:
    """The first right choice of a form stays."""
    return all(form not in forms for form in own)


def _measure(
    spec: dict[str, Any], probe: Probe, forms: dict[str, str]
) -> dict[str, Any]:
    with mx.stream(mx.cpu):
        tape, arrays = probe()
        expected = [np.array(y.astype(mx.float32)) for y in tape.run(*arrays)]
        values = [np.array(a.astype(mx.float32)) for a in arrays]
    program = translate(tape, **forms)
    packed = program.pack(values)
    inputs = [(port.name, list(port.shape)) for port in program.ports]
    outputs = [(result.name, list(result.port)) for result in program.results]
    facts = _apple.run(
        (program.text(spec["dialect"]), inputs, outputs),
        [
            [
                np.ascontiguousarray(packed[name], np.float16).ravel().view(np.uint16)
                for name, _ in inputs
            ]
        ],
        3,
        route=spec["route"],
        staging=spec.get("staging", ""),
        row_alignment=spec.get("row_alignment") or 0,
    )
    results = {
        name: np.frombuffer(bits, np.float16).reshape(shape)
        for (name, shape), bits in zip(outputs, facts.pop("outputs"), strict=True)
    }
    error = max(
        float(np.linalg.norm(y - e) / max(float(np.linalg.norm(e)), 1e-9))
        for y, e in zip(program.unpack(results), expected, strict=True)
    )
    del facts["facts"]
    facts["relative_error"] = error if np.isfinite(error) else None
    facts["passed"] = bool(error <= TOLERANCE and facts["unwritten"] == 0)
    if not facts["passed"]:
        facts["error"] = f"wrong values: relative error {error:.2g}"
    return facts

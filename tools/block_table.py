"""Counts the kinds of block in mlx-lm that become engine programs.

    python tools/block_table.py                  # all architectures: some minutes
    python tools/block_table.py llama mixtral    # these
    python tools/block_table.py --json           # for a test

A kind is a class of layer with the shapes of its parameters and arguments. Each is
taken from a tiny random model, called as that model calls it, translated forward and
back, run on the emulated engine and compared with plain MLX in fp32.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from model_configs import TINY
from model_table import CRASHES, TOKENS, architectures, build

from mlx_ane.block import Block
from mlx_ane.capture import flatten, rebuild


@dataclass
class Row:
    """What became of one kind of block."""

    architecture: str
    kind: str
    #: Relative error of the outputs and of the worst gradient; None if not translated.
    forward: float | None = None
    backward: float | None = None
    #: Why not.
    failure: str = ""


def calls(model: nn.Module) -> list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]:
    """One layer of each kind, with the arguments that its model gives it."""
    found: dict[Any, tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = {}
    classes = {}

    def recording(cls: type) -> type:
        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            sizes = [(k, v.shape) for k, v in tree_flatten(self.parameters())]
            # Copies: the call writes to its caches.
            copies = rebuild((args, kwargs), lambda _, array, __: array)
            found.setdefault((cls, str(sizes)), (self, *copies))
            return cls.__call__(self, *args, **kwargs)

        return type(cls.__name__, (cls,), {"__call__": call})

    layers = [layer for layer in model.layers if isinstance(layer, nn.Module)]
    for layer in layers:
        classes[id(layer)] = type(layer)
        layer.__class__ = recording(type(layer))
    try:
        mx.eval(model(mx.random.randint(1, TINY["vocab_size"], TOKENS)))
    finally:
        for layer in layers:
            layer.__class__ = classes[id(layer)]
    return list(found.values())


def measure(name: str) -> list[Row]:
    """A row for each kind of block of an architecture."""
    if name in CRASHES:
        return []
    try:
        kinds = calls(build(name))
    except Exception as error:
        return [Row(name, "", failure=f"plain MLX: {_sentence(error)}")]
    return [_measure(name, *kind) for kind in kinds]


def _measure(
    name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Row:
    row = Row(name, type(layer).__name__)
    layer.eval()

    def call(layer: nn.Module, args: Any, kwargs: Any) -> Any:
        return layer(*args, **kwargs)

    try:
        # First: some layers keep what they compute.
        expected = flatten(call(layer, *rebuild((args, kwargs), lambda _, a, __: a)))
        block = Block(call, layer, args, kwargs)
        got = block(layer, args, kwargs)
        row.forward = _worst(got, [np.array(y.astype(mx.float32)) for y in expected])
    except Exception as error:
        row.failure = f"forward: {_sentence(error)}"
        return row
    try:
        rng = np.random.default_rng(0)
        dy = [rng.standard_normal(y.shape).astype(np.float32) for y in expected]
        body, wanted = block.captured.body, block.differentiable
        inputs = block.captured.arguments(layer, args, kwargs)
        got = block.backward(wanted).run([*dy, *map(np.array, inputs)])

        def chosen(*changed: mx.array) -> list[mx.array]:
            full = list(inputs)
            for i, array in zip(wanted, changed, strict=True):
                full[i] = array
            return body.run(*full)

        _, exact = mx.vjp(
            chosen, [inputs[i] for i in wanted], [mx.array(d) for d in dy]
        )
        row.backward = _worst(got, [np.array(g) for g in exact])
    except Exception as error:
        row.failure = f"backward: {_sentence(error)}"
    return row


def _worst(got: list[np.ndarray], expected: list[np.ndarray]) -> float:
    errors = [
        float(np.linalg.norm(g - e) / (np.linalg.norm(e) or 1))
        for g, e in zip(got, expected, strict=True)
    ]
    if not all(np.isfinite(e).all() for e in expected):
        raise ValueError("plain MLX's result is not finite")
    if not np.isfinite(errors).all():
        raise OverflowError("the engine's result is not finite")
    return max(errors)


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]


def summary(rows: list[Row]) -> dict[str, Any]:
    """Counts of kinds: all, forward, backward, and what is missing."""
    reasons = Counter(row.failure.split(" near ")[0] for row in rows if row.failure)
    return {
        "kinds": len(rows),
        "forward": sum(row.forward is not None for row in rows),
        "backward": sum(row.backward is not None for row in rows),
        "missing": dict(reasons.most_common()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="architectures (default: all)")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    args = parser.parse_args()
    mx.set_default_device(mx.cpu)
    mx.disable_compile()  # each fused kernel would go through the C++ compiler
    rows = []
    for name in args.names or architectures():
        for row in measure(name):
            rows.append(row)
            if not args.json:
                print(row, flush=True)
    if args.json:
        print(json.dumps({**summary(rows), "rows": [asdict(r) for r in rows]}))
    else:
        print(json.dumps(summary(rows), indent=2))


if __name__ == "__main__":
    main()

"""Converts every architecture of mlx-lm and writes docs/models.md.

    python tools/model_table.py                  # all of them: some minutes
    python tools/model_table.py llama mixtral    # prints these, writes nothing

Each model is built from a tiny random config, run forward and backward by plain MLX,
converted to the emulated device, and run again.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from model_configs import SPECIAL, TEXT_OF, TINY

import mlx_ane as ane

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
TOKENS = (1, 64)  # more rows than min_rows, so that they go to the device
LARGEST = 20_000_000  # parameters of what still counts as tiny
#: Architectures that end the process in plain MLX.
CRASHES = {"phi3small": "its block-sparse attention crashes MLX's CPU build"}


@dataclass
class Row:
    """What became of one architecture."""

    name: str
    converted: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    forward: float = 0.0
    gradient: float | None = None
    #: Why there are no figures.
    failure: str = ""


def architectures() -> list[str]:
    """Names of the modules of mlx_lm.models that define a model."""
    import mlx_lm.models

    names = [m.name for m in pkgutil.iter_modules(mlx_lm.models.__path__)]
    return sorted(n for n in names if n not in ("base", "olmo") and _has_model(n))


def _has_model(name: str) -> bool:
    module = importlib.import_module(f"mlx_lm.models.{name}")
    return hasattr(module, "Model") and hasattr(module, "ModelArgs")


def build(name: str) -> nn.Module:
    """A tiny random model of an architecture, in fp32."""
    module = importlib.import_module(f"mlx_lm.models.{name}")
    sizes = {**TINY, "model_type": name}
    text = {**sizes, **SPECIAL.get(TEXT_OF.get(name, name), {})}
    config = {**text, "text_config": text}
    mx.random.seed(0)
    model: nn.Module = module.Model(module.ModelArgs.from_dict(config))
    count = sum(a.size for _, a in tree_flatten(model.parameters()))
    if count > LARGEST:
        raise ValueError(f"its config has {count / 1e6:.0f} M parameters")
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model


def measure(name: str) -> Row:
    """Builds, runs plain, converts, runs again."""
    row = Row(name, failure=CRASHES.get(name, ""))
    if row.failure:
        return row
    try:
        model = build(name)
        tokens = mx.random.randint(1, TINY["vocab_size"], TOKENS)
        plain = _run(model, tokens)
    except Exception as error:
        row.failure = "plain MLX: " + _sentence(error)
        return row
    try:
        report = ane.convert(model, device="emulated")
        row.converted = len(report.converted)
        row.skipped = Counter(s.kind for s in report.skipped)
        row.reasons = {s.kind: s.reason for s in report.skipped}
        ours = _run(model, tokens)
        row.forward = _error(ours[0], plain[0])
        if plain[1] is not None and ours[1] is not None:
            row.gradient = _error(ours[1], plain[1])
    except Exception as error:
        row.failure = "mlx_ane: " + _sentence(error)
    return row


def _run(model: nn.Module, tokens: mx.array) -> tuple[mx.array, mx.array | None]:
    """Logits, and all gradients of the next-token loss in one vector."""

    def loss(tokens: mx.array) -> mx.array:
        logits = model(tokens[:, :-1])
        return nn.losses.cross_entropy(logits, tokens[:, 1:], reduction="mean")

    model.eval()
    logits = model(tokens)
    mx.eval(logits)
    model.train()
    try:
        _, gradients = nn.value_and_grad(model, loss)(tokens)
        parts = [g.flatten() for _, g in tree_flatten(gradients)]
        joined = mx.concatenate([g.astype(mx.float32) for g in parts])
        if not mx.isfinite(joined).all().item():
            return logits, None
    except (RuntimeError, ValueError):
        return logits, None  # some of mlx-lm's kernels have no gradient
    return logits, joined


def _error(got: mx.array, expected: mx.array) -> float:
    difference = (got - expected).astype(mx.float32).flatten()
    scale = mx.linalg.norm(expected.astype(mx.float32).flatten())
    return float((mx.linalg.norm(difference) / mx.where(scale, scale, 1)).item())


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]


def page(rows: list[Row]) -> str:
    """The text of docs/models.md."""
    import mlx_lm

    good = [r for r in rows if not r.failure]
    lines = [
        "# Models",
        "",
        f"{len(good)} of the {len(rows)} architectures of mlx-lm {mlx_lm.__version__}, "
        "each built from a tiny random config.",
        "Written by `python tools/model_table.py`.",
        "",
        "Forward and gradient errors are those of the whole model on the emulated",
        "device against plain MLX in fp32, ‖Δ‖ / ‖reference‖, on 64 random tokens. A",
        "mixture of experts may choose another expert after fp16 rounding; then the",
        "error is that of the choice. Layers that are not converted stay on MLX; `-`",
        "means that plain MLX itself has no gradient there.",
        "",
        "| architecture | converted | not converted | forward | gradient |",
        "|---|---|---|---|---|",
        *map(_line, good),
    ]
    reasons = {kind: why for r in good for kind, why in r.reasons.items()}
    lines += [
        "",
        "Why layers are not converted:",
        "",
        "| class | reason |",
        "|---|---|",
    ]
    lines += [f"| {kind} | {why} |" for kind, why in sorted(reasons.items())]
    bad = [r for r in rows if r.failure]
    if bad:
        lines += ["", "Not run:", "", "| architecture | why |", "|---|---|"]
        lines += [f"| {r.name} | {r.failure.replace('|', '/')} |" for r in bad]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    skipped = ", ".join(f"{n} {kind}" for kind, n in sorted(row.skipped.items()))
    gradient = "-" if row.gradient is None else f"{row.gradient:.1e}"
    return (
        f"| {row.name} | {row.converted} | {skipped} | {row.forward:.1e} | {gradient} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="architectures (default: all)")
    args = parser.parse_args()
    mx.disable_compile()  # each fused kernel would go through the C++ compiler
    rows = []
    for name in args.names or architectures():
        row = measure(name)
        rows.append(row)
        print(f"{name}: {row.failure}" if row.failure else _line(row), flush=True)
    if not args.names:
        PAGE.write_text(page(rows))


if __name__ == "__main__":
    main()

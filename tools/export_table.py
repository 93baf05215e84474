"""Exports a tiny random model of every architecture of mlx-lm, and counts.

python tools/export_table.py            # all of them, about two minutes
python tools/export_table.py llama gemma3
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import mlx.core as mx
from model_table import architectures, build

import mlx_ane as ane

TOKENS = 32


def measure(name: str, folder: Path) -> tuple[float | None, str]:
    """The relative error of an exported architecture, or why it has none."""
    try:
        model = build(name)
    except Exception as error:
        return None, f"not built: {error}"
    model.eval()
    tokens = mx.arange(TOKENS)[None] * 7 % 60
    path = folder / f"{name}.mlpackage"
    try:
        report = ane.export(lambda tokens: model(tokens), path, tokens)
    except (NotImplementedError, ValueError, RuntimeError) as error:
        return None, str(error)
    return report.error, ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="architectures (default: all)")
    names = parser.parse_args().names or architectures()
    found: dict[str, float] = {}
    reasons: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            error, why = measure(name, Path(folder))
            print(f"{name}: {why if error is None else f'{error:.1e}'}", flush=True)
            if error is not None:
                found[name] = error
            else:
                why = why.removeprefix("[mlx_ane.export] ")
                reasons[why.split(" in ")[0].split(":")[0]] += 1
    small = sum(error <= 2e-3 for error in found.values())
    print(f"{len(found)} of {len(names)} exported, {small} within 2e-3")
    print("not:", ", ".join(f"{n} {reason}" for reason, n in reasons.most_common()))


if __name__ == "__main__":
    main()

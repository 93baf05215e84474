"""Compares the cost model of `ane.plan` with what others measured on each chip.

    python tools/cost_model.py --write docs/cost_model.md

writes the tables of that page: against measurements, and of a step by layers, by
blocks, on the GPU and on the CPU. Nothing here was measured by this project.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx import nn

import mlx_ane as ane
from mlx_ane import chips
from mlx_ane.estimate import two_digits

ROOT = Path(__file__).parents[1]
#: Begin and end of a table on the page.
MARKS = "<!-- tools/cost_model.py {} -->", "<!-- end {} -->"


@dataclass(frozen=True)
class Row:
    """A published figure and the model's, in milliseconds."""

    what: str
    machine: str
    published: float
    model: float
    source: str
    #: Why the model is expected to differ.
    note: str = ""

    @property
    def ratio(self) -> float:
        return self.model / self.published


#: Milliseconds of a GEMM of N x N x N by ANEForge's rooflines, one run a machine.
SIZES = (512, 1024, 2048, 4096)
SWEEPS = {
    ("h13", "M1"): (0.332, 0.993, 4.96, 31.7),
    ("h13", "M1 Max"): (0.488, 1.33, 4.37, 30.0),
    ("h14", "M2 Pro"): (0.582, 1.99, 7.48, 40.8),
    ("h14", "M2 Max"): (0.289, 1.28, 3.81, 25.5),
    ("h16g", "M4"): (0.209, 0.746, 3.51, 25.3),
    ("h16g", "M4 Pro"): (0.137, 0.599, 2.77, 22.4),
    ("h16g", "M4 Max"): (0.139, 0.371, 1.94, 20.6),
    ("h17s", "M5"): (0.116, 0.434, 2.00, 18.9),
    ("h17s", "M5 Pro"): (0.152, 0.375, 1.71, 16.6),
}


def products() -> Iterator[Row]:
    """Single programs: no conversion on the host, K not split."""
    for (key, machine), times in SWEEPS.items():
        for n, published in zip(SIZES, times, strict=True):
            model = chips.CHIPS[key].seconds(2.0 * n**3, 6.0 * n**2)
            yield Row(
                f"GEMM of {n}", machine, published, model * 1e3, "ANEForge's rooflines"
            )
    peak = chips.CHIPS["h13"].seconds(2.0 * 4096**3, 6.0 * 4096**2)
    yield Row(
        "GEMM of 4096 at 2.7 TFLOP/s",
        "M1 (MacBook Pro)",
        2.0 * 4096**3 / 2.7e9,
        peak * 1e3,
        "ANEForge's rooflines, its peak; size assumed",
    )
    h15 = chips.CHIPS["h15"]
    flops, moved = 2.0 * 2048 * 1344 * 5376, 2.0 * (2048 * 1344 + 6720 * 5376)
    yield Row(
        "2048 x 1344 x 5376 at 10.3 TFLOP/s",
        "M3 Ultra, one die",
        flops / 10.3e9,
        h15.seconds(flops, moved) * 1e3,
        "MiniMax-H3-Swift; rows and N assumed",
    )


def floors() -> Iterator[Row]:
    """A program that does nothing."""
    for key, machine, published, source in [
        ("h13", "M1", 0.19, "Bryngelson"),
        ("h16g", "M4", 0.095, "maderix/ANE, Orion"),
        ("h17s", "M5", 0.09, "ANEForge: 0.07 to 0.11 over e5rt"),
    ]:
        floor = chips.CHIPS[key].floor.value * 1e3
        yield Row("an empty program", machine, published, floor, source)


class Shapes(nn.Module):
    """The products of a llama-like model, without what is between them."""

    def __init__(self, layers: int, d: int, q: int, kv: int, ffn: int, vocab: int):
        super().__init__()
        block = [(d, q), (d, kv), (d, kv), (q, d), (d, ffn), (d, ffn), (ffn, d)]
        sizes = [*itertools.chain(*[block] * layers), (d, vocab)]
        self.layers = [nn.Linear(k, n, bias=False) for k, n in sizes]

    def __call__(self, x):
        return [layer(x[..., : layer.weight.shape[1]]) for layer in self.layers]


STORIES = Shapes(12, 768, 768, 768, 2048, 32000)
QWEN = Shapes(28, 1024, 2048, 1024, 3072, 151936)
ROWS = 256  # tokens of a step
#: Bytes that Adam moves for a parameter, and bytes/s of a chip's memory.
ADAM_BYTES, MEMORY = 28, 100e9


def step(model: Shapes, key: str, cpu: float | None = None) -> float:
    """Milliseconds: forward on the engine, gradients and Adam on the CPU."""
    # Those trainers' weights are compiled in, or written by Adam: none is packed.
    model.freeze()
    forward = ane.plan(model, (ROWS, 4096), chip=key).estimates[0].layers
    parameters = sum(layer.weight.size for layer in model.layers)
    rate = cpu or chips.CHIPS[key].cpu.value
    backward = 4.0 * ROWS * parameters / rate
    return 1e3 * (forward + backward + parameters * ADAM_BYTES / MEMORY)


def steps() -> Iterator[Row]:
    """Whole training steps of other engines' trainers, batch 1, 256 tokens."""
    static = "maderix/ANE's report, weights compiled in"
    two = "fp32 at 3.2 TFLOP/s as its CPU in ANEForge's rooflines"
    for key, machine, published, cpu, note in [
        ("h13", "M1 Pro", 156, None, "the CPU of M1"),
        ("h13", "M1 Max", 155, None, "the CPU of M1"),
        ("h15", "M3 Ultra", 91, None, "the CPU of M4"),
        ("h16g", "M4 Pro", 71, 3.17e12, two),
        ("h16g", "M4 Max", 64, 3.28e12, two),
        ("h17s", "M5", 110, None, ""),
    ]:
        model = step(STORIES, key, cpu)
        yield Row("Stories110M, a step", machine, published, model, static, note)
    dynamic = "maderix/ANE, weights as data"
    yield Row(
        "Stories110M, a step",
        "M3 Max",
        102,
        step(STORIES, "h15"),
        "V2 residency note",
        "the CPU of M4",
    )
    yield Row("Qwen3-0.6B, a step", "M4", 412, step(QWEN, "h16g"), dynamic)
    yield Row(
        "Qwen3-0.6B, a step",
        "M5 Max",
        320,
        step(QWEN, "h17s"),
        dynamic,
        "the CPU of M5",
    )


#: Qwen3-0.6B: what the totals of `ane.plan` are shown for.
QWEN_CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}


def qwen(lora: bool) -> nn.Module:
    """Qwen3-0.6B in bfloat16, its weights never computed; LoRA of rank 8 in all."""
    from mlx_lm.models import qwen3
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model = qwen3.Model(qwen3.ModelArgs.from_dict(QWEN_CONFIG))
    model.set_dtype(mx.bfloat16)
    if lora:
        model.freeze()
        linear_to_lora_layers(model, 28, {"rank": 8, "dropout": 0.0, "scale": 20.0})
    return model


def totals() -> str:
    """A step of Qwen3-0.6B, 1 x 1024 tokens, on each chip, in Markdown."""
    lines = [
        "| chip | trained | engine, by layers | by blocks | GPU | CPU |",
        "|---|---|---|---|---|---|",
    ]
    for lora in (True, False):
        model = qwen(lora)
        for chip in ("M1", "M2", "M3", "M4", "M4 Max", "M5"):
            step = ane.plan(model, (1, 1024), chip=chip).estimates[-1]
            found = (step.layers, step.blocks or 0.0, step.gpu, step.cpu)
            cells = " | ".join(two_digits(1e3 * s) for s in found)
            lines.append(f"| {chip} | {'LoRA, rank 8' if lora else 'all'} | {cells} |")
    return "\n".join(lines) + "\n"


def rows() -> list[Row]:
    """Every figure that the model can be held against."""
    return [*products(), *floors(), *steps()]


def table() -> str:
    """The comparison in Markdown."""
    lines = [
        "| what | machine | published, ms | model, ms | model / published | source |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows():
        source = row.source + (f"; {row.note}" if row.note else "")
        off = "" if 0.5 <= row.ratio <= 2 else " **off**"
        lines.append(
            f"| {row.what} | {row.machine} | {row.published:.3g} | {row.model:.3g} "
            f"| {row.ratio:.2f}{off} | {source} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="replace the tables of this page")
    args = parser.parse_args()
    tables = {"measurements": table(), "totals": totals()}
    if args.write:
        text = args.write.read_text()
        for name, found in tables.items():
            begin, end = (mark.format(name) for mark in MARKS)
            before, rest = text.split(begin)
            text = f"{before}{begin}\n\n{found}\n{end}{rest.split(end)[1]}"
        args.write.write_text(text)
    else:
        print("\n".join(tables.values()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

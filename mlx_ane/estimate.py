"""Seconds of a forward pass and of a training step, by layers, by blocks, elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mlx_ane.block import BlockProgram, Gemm
from mlx_ane.chips import UNCERTAINTY, Chip

#: Estimates that differ by less are not called different.
CLEARLY = 1.1

#: A value of an estimate by its name, and what it is called.
WAYS = {
    "layers": "engine, by layers",
    "blocks": "engine, by blocks",
    "gpu": "MLX on the GPU",
    "cpu": "CPU's BLAS",
}


@dataclass(frozen=True)
class Product:
    """The product of a layer as a step sees it."""

    #: Floating-point operations of the forward product.
    flops: float
    #: Seconds of the forward product by layers: on the engine, or placed on the CPU.
    seconds: float
    #: Whether a step needs the gradients of its input and of its weight.
    dx: bool
    dw: bool
    #: Index of the block's program that makes it, or None.
    block: int | None = None

    @property
    def backward(self) -> float:
        """Floating-point operations of its gradients."""
        return self.flops * (self.dx + self.dw)


@dataclass(frozen=True)
class Call:
    """What one call of a block's program costs."""

    #: Floating-point operations of the products on the engine.
    flops: float
    #: Bytes of all ports, fp16.
    moved: float
    #: Elements that the host converts: activations, results, trained weights.
    converted: float
    #: Floating-point operations of the weights' gradients, on the CPU's BLAS.
    host_flops: float = 0.0

    @classmethod
    def of(cls, block: BlockProgram, staged: Sequence[bool]) -> Call:
        """The costs of a program.

        Args:
            block (BlockProgram): Of a block's forward or gradient.
            staged: For each of its inputs, whether it stays on the engine.
        """
        ports, results = block.program.ports, block.program.results
        packed = [p for p in ports if any(not staged[part.source] for part in p.parts)]
        out = sum(math.prod(r.port) for r in results)
        return cls(
            flops=products_of(block)[1],
            moved=2.0 * (sum(math.prod(p.shape) for p in ports) + out),
            converted=float(sum(math.prod(p.shape) for p in packed) + out),
            host_flops=sum(_flops(g) for o in block.outputs for g in o.gemms),
        )

    def seconds(self, chip: Chip) -> float:
        """On the engine, with conversion on the host; without the BLAS's part."""
        return chip.seconds(self.flops, self.moved) + chip.converting(self.converted)


def _flops(gemm: Gemm) -> float:
    rows, depth = gemm.left.shape[:: -1 if gemm.left.transposed else 1]
    columns = gemm.right.shape[0 if gemm.right.transposed else 1]
    return 2.0 * rows * depth * columns


def products_of(block: BlockProgram) -> tuple[int, float]:
    """The products in a program: their number and floating-point operations."""
    types = block.tape.types
    flops = [
        2.0 * types[node.outputs[0]].size * types[node.inputs[0]].shape[-1]
        for node in block.tape.nodes
        if node.name in ("Matmul", "AddMM")
    ]
    return len(flops), sum(flops)


@dataclass(frozen=True)
class Block:
    """The calls of a block, or of a part of it, that is one program."""

    forward: Call
    #: None where a step needs none of its gradients.
    backward: Call | None
    #: Products that no layer makes, as of attention and LoRA, and their operations.
    others: int
    other_flops: float


@dataclass(frozen=True)
class Estimate:
    """Expected seconds of one pass with one shape of input.

    The truth is expected within a factor of `chips.UNCERTAINTY`.
    """

    shape: tuple[int, ...]
    #: "forward", or "step": forward, backward and Adam.
    what: str
    layers: float
    #: None where the model has no block that can be a program.
    blocks: float | None
    gpu: float
    cpu: float

    @property
    def engine(self) -> tuple[str, float]:
        """The faster one of "layers" and "blocks", and its seconds."""
        if self.blocks is None or self.layers <= self.blocks:
            return "layers", self.layers
        return "blocks", self.blocks


def estimates(
    shape: tuple[int, ...],
    products: Sequence[Product],
    blocks: Sequence[Block],
    trained_bytes: int,
    chip: Chip,
) -> list[Estimate]:
    """Estimates of a forward pass and, if anything is trained, of a step.

    By layers the forward products are the engine's, their gradients the BLAS's, and
    what no layer makes (attention) MLX's on its GPU. By blocks the gradients of
    inputs are the engine's too, and the BLAS makes those of weights after it: MLX
    lets one stream wait for all that it gave another before.

    Args:
        shape: Shape of the model's input.
        products: Of all layers, in the order of the pass.
        blocks: Those that can be programs.
        trained_bytes (int): Bytes of trained parameters.
        chip (Chip): Its figures.
    """
    inside = [p for p in products if p.block is not None]
    outside = [p for p in products if p.block is None]
    with_gradient = [b for b in blocks if b.backward is not None]
    other, other_back = _others(blocks), _others([*with_gradient, *with_gradient])
    flops = other[0] + _sum(p.flops for p in products)
    back = other_back[0] + _sum(p.backward for p in products)
    started = other[1] + len(products)
    started_back = other_back[1] + sum(p.dx + p.dw for p in products)
    on_gpu, on_cpu = chip.on_gpu, chip.on_cpu
    forward = Estimate(
        shape,
        "forward",
        layers=_sum(p.seconds for p in products) + on_gpu(*other),
        blocks=_sum(p.seconds for p in outside)
        + _sum(b.forward.seconds(chip) for b in blocks)
        if blocks
        else None,
        gpu=on_gpu(flops, started),
        cpu=on_cpu(flops, started),
    )
    if not trained_bytes:
        return [forward]
    backward = [b.backward for b in with_gradient if b.backward is not None]
    adam = 7 * trained_bytes / chip.memory.value  # reads p, g, m, v; writes p, m, v
    on_blas = on_cpu(*_backward(outside))
    step = Estimate(
        shape,
        "step",
        layers=forward.layers
        + on_blas
        + on_cpu(*_backward(inside))
        + on_gpu(*other_back)
        + adam,
        blocks=None
        if forward.blocks is None
        else forward.blocks
        + on_blas
        + _sum(call.seconds(chip) for call in backward)
        + on_cpu(_sum(call.host_flops for call in backward), 0)
        + adam,
        gpu=forward.gpu + on_gpu(back, started_back) + adam,
        cpu=forward.cpu + on_cpu(back, started_back) + adam,
    )
    return [forward, step]


def _others(blocks: Sequence[Block]) -> tuple[float, int]:
    return _sum(b.other_flops for b in blocks), sum(b.others for b in blocks)


def _backward(products: Sequence[Product]) -> tuple[float, int]:
    return _sum(p.backward for p in products), sum(p.dx + p.dw for p in products)


def _sum(values: Iterable[float]) -> float:
    return float(sum(values))


# -- words ------------------------------------------------------------------------


def two_digits(value: float) -> str:
    """A number of at least 0.001 to two digits, without an exponent."""
    if value <= 0:
        return "0"
    places = 1 - math.floor(math.log10(value))
    rounded = round(value, places)
    return f"{rounded:.{max(places, 0)}f}"


def milliseconds(seconds: float) -> str:
    """Milliseconds to two digits, with the band that they are good for."""
    ms = seconds * 1e3
    low, high = two_digits(ms / UNCERTAINTY), two_digits(ms * UNCERTAINTY)
    return f"{two_digits(ms)} [{low} - {high}]"


def advice(estimate: Estimate, chip: str) -> str:
    """One sentence on what an estimate means for a user of this chip.

    Args:
        estimate (Estimate): Of a step, or of a forward pass.
        chip (str): Its name.
    """
    by, engine = estimate.engine
    what, ours, gpu = _passes(estimate), _ms(engine), _ms(estimate.gpu)
    if engine > UNCERTAINTY * estimate.gpu:
        found = (
            f"On {chip} the GPU is faster than the engine: about {gpu} {what}; the "
            f"engine frees it: expect about {ours} by {by}"
        )
    elif engine * UNCERTAINTY < estimate.gpu:
        found = (
            f"On {chip} the engine is faster: about {ours} {what} by {by}, {gpu} on "
            f"the GPU, which stays free"
        )
    else:
        found = (
            f"On {chip} engine and GPU are too close to tell: about {ours} {what} by "
            f"{by}, {gpu} on the GPU; the engine leaves it free"
        )
    if estimate.cpu < engine:
        cpu = _ms(estimate.cpu)
        found += f"; the CPU's BLAS alone (device 'cpu') is estimated at {cpu}"
    return found + "."


def choose_granularity(
    estimate: Estimate, chip: str, use_gpu: bool
) -> tuple[Literal["layer", "block"], str]:
    """The granularity that is estimated faster, and why.

    Args:
        estimate (Estimate): Of the pass that counts.
        chip (str): Its name.
        use_gpu (bool): Whether layers may stay on the GPU where that is faster.
    """
    layers, blocks = estimate.layers, estimate.blocks
    if blocks is None:
        return "layer", "no block can be a program"
    found = (
        f"{_passes(estimate)} on {chip} is estimated at {_ms(blocks)} by blocks, "
        f"{_ms(layers)} by layers"
    )
    if use_gpu:
        found += f", {_ms(estimate.gpu)} on the GPU"
    best = min(layers, estimate.gpu) if use_gpu else layers
    chosen: Literal["layer", "block"] = "block" if blocks < best else "layer"
    return chosen, found


def hint(estimate: Estimate, chip: str, granularity: str) -> str:
    """One line on what is estimated to be faster than this granularity, or ""."""
    layers, blocks, gpu = estimate.layers, estimate.blocks, estimate.gpu
    here, what = layers, _passes(estimate)
    if granularity == "block" and blocks is not None:
        here = blocks
    found = []
    if blocks is not None and CLEARLY * blocks < here:
        found.append(f"granularity 'block' ({_ms(blocks)})")
    if CLEARLY * gpu < min(here, layers if blocks is None else blocks):
        found.append(f"MLX's GPU, which then is not free ({_ms(gpu)})")
    if not found:
        return ""
    return f"{chip} is estimated to take {_ms(here)} {what}; faster: " + ", ".join(
        found
    )


def _passes(estimate: Estimate) -> str:
    return "a step" if estimate.what == "step" else "a forward pass"


def _ms(seconds: float) -> str:
    return f"{two_digits(1e3 * seconds)} ms"

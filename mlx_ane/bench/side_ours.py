"""mlx_ane's side of the benchmark, its probes of the machine, and the reference."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

import mlx_ane as ane
from mlx_ane import _ext

from . import side_mlx
from .inputs import (
    BETAS,
    EPS,
    LEARNING_RATE,
    WEIGHT_DECAY,
    adam_inputs,
    gemm_inputs,
    gemm_sample,
    sample,
    step_inputs,
    to_bfloat16,
    uniform,
)
from .model import Model, train_step
from .timing import Fixed, Timed, WithParts

kernels = _ext.kernels


def info() -> dict[str, str]:
    """Version, BLAS and instruction set."""
    return {
        "mlx_ane": ane.__version__,
        "blas": f"{_ext.blas_name()}, {_ext.blas_threads()} threads",
        "instructions": kernels.target(),
    }


def task(part: str, spec: dict[str, Any]) -> Timed | Fixed:
    """The task of a part; spec["how"] chooses among ours."""
    mx.set_default_device(mx.cpu)
    parts = {
        "adam": _adam,
        "embedding": lambda spec: side_mlx.embedding(spec, ane.nn.ANEEmbedding),
        "gemm": _gemm,
        "pack": _pack,
        "dispatch": _staged if "frozen" in spec else _dispatch,
        "step": _step,
    }
    return parts[part](spec)


def _adam(spec: dict[str, Any]) -> Timed:
    if spec["how"] == "update":
        return side_mlx.adam(spec, ane.optimizers.AdamW)
    tensors = [
        [t[name].reshape(-1) for name in ("p", "g", "m", "v")]
        for t in adam_inputs(spec)
    ]

    def run() -> None:
        # By name, whatever is in use.
        before = kernels.adam_implementation()
        name = "accelerate" if spec["how"] == "accelerate" else "loop"
        kernels.set_adam_implementation(name)
        for arrays in tensors:
            if spec["how"] == "traffic":
                kernels.adam_traffic(*arrays)
            else:
                kernels.adam(
                    *arrays,
                    learning_rate=LEARNING_RATE,
                    weight_decay=WEIGHT_DECAY,
                    reference=spec["how"] == "reference",
                    passes=spec["how"] == "passes",
                )
        kernels.set_adam_implementation(before)

    def first() -> NDArray[Any]:
        if spec["how"] == "traffic":
            return np.zeros(0)
        run()
        return np.concatenate([sample(arrays[0]) for arrays in tensors])

    return Timed(run, first)


def _gemm(spec: dict[str, Any]) -> Timed | Fixed:
    if spec["how"] == "peak":
        flops = 2.0 * spec["S"] * spec["K"] * spec["N"]
        return Fixed(lambda: flops / kernels.fma_peak(0.02) / 1e9)
    if spec["how"] == "grad":
        timed = _gemm_grad(spec)
        return _Crowded(timed, spec["neighbours"]) if spec.get("neighbours") else timed
    arrays = gemm_inputs(spec)
    if spec.get("dtype") == "bfloat16":
        arrays = {k: to_bfloat16(v) for k, v in arrays.items()}
    elif spec.get("dtype") == "float16":
        arrays = {k: v.astype(np.float16) for k, v in arrays.items()}
    dx = spec["role"] == "dx"
    right = arrays["w"] if dx else arrays["x"]
    rows = spec["S"] if dx else spec["N"]
    out = np.empty((rows, right.shape[1]), np.float32)

    def run() -> None:
        if spec["how"] == "cblas":
            kernels.sgemm(arrays["dy"], right, out, trans_a=not dx)
        elif spec["how"] == "reference":
            kernels.sgemm(arrays["dy"], right, out, trans_a=not dx, reference=True)
        else:
            kernels.gemm(arrays["dy"] if dx else arrays["dy"].T, right, out)

    def first() -> NDArray[Any]:
        run()
        return gemm_sample(out)

    return Timed(run, first, least=0.01)


class _Crowded(Timed):
    """A task while other processes keep cores busy."""

    def __init__(self, timed: Timed, neighbours: int) -> None:
        super().__init__(timed._run, timed.result, timed._least)
        self._neighbours = neighbours

    def run(self) -> dict[str, float]:
        """As Timed.run, among the neighbours."""
        spin = [sys.executable, "-S", "-c", "while True: pass"]
        busy = [subprocess.Popen(spin) for _ in range(self._neighbours)]
        try:
            time.sleep(0.1)  # until they run
            return super().run()
        finally:
            for process in busy:
                process.kill()
                process.wait()


def _gemm_grad(spec: dict[str, Any]) -> Timed:
    """The public way: the vjp of ane.linear, for one argument."""
    dtype = getattr(mx, spec.get("dtype", "float32"))
    arrays = {k: mx.array(v).astype(dtype) for k, v in gemm_inputs(spec).items()}
    x, w, dy = arrays["x"], arrays["w"], arrays["dy"]
    mx.eval(x, w, dy)

    def gradient() -> mx.array:
        if spec["role"] == "dx":
            return mx.vjp(lambda x: ane.linear(x, w, device="cpu"), [x], [dy])[1][0]
        return mx.vjp(lambda w: ane.linear(x, w, device="cpu"), [w], [dy])[1][0]

    def run() -> None:
        _ext.set_blas_threads(spec.get("threads", 0))
        mx.eval(gradient())
        _ext.set_blas_threads(0)

    return Timed(
        run,
        lambda: gemm_sample(np.array(gradient().astype(mx.float32))),
        least=0.01,
    )


def _pack(spec: dict[str, Any]) -> Timed:
    rows, cols, how = spec["rows"], spec["cols"], spec["how"]
    # Rotating over more than any cache holds makes every run cold.
    sets = max(2, (192 << 20) // (6 * rows * cols) + 1) if spec["cold"] else 1
    x = [uniform(0, rows, cols) for _ in range(sets)]
    shape = (rows, cols) if how == "straight" else (cols, rows)
    halves = [
        np.ascontiguousarray((x[0] if how == "straight" else x[0].T), np.float16)
        .reshape(shape)
        .copy()
        for _ in range(sets)
    ]
    turn = 0

    def run() -> None:
        nonlocal turn
        turn = (turn + 1) % sets
        wide, narrow = x[turn], halves[turn]
        if how == "memcpy":
            kernels.memory_copy(narrow, wide, 2 * rows * cols)
            kernels.memory_copy(wide[rows // 2 :], wide, rows * cols)
        elif how == "unpack":
            kernels.unpack(narrow, wide, transposed=True)
        else:
            kernels.pack(wide, narrow, transposed=how == "pack")

    def result() -> NDArray[Any]:
        if how == "memcpy":
            return np.zeros(0)
        run()
        if how == "unpack":
            return sample(x[turn])
        back = halves[turn] if how == "straight" else halves[turn].T
        return sample(np.ascontiguousarray(back)).astype(np.float32)

    return Timed(run, result, least=0.0 if spec["cold"] else 2e-3)


def _staged(spec: dict[str, Any]) -> Timed:
    """Forward of frozen layers; the result is the bytes of weights converted."""
    layers = [
        ane.nn.ANELinear(dim, dim, bias=False, device="emulated")
        for dim in spec["frozen"] * [spec["dim"]]
    ]
    x = mx.random.normal((spec["S"], spec["dim"]))
    for layer in layers:
        layer.freeze()
    mx.eval(x, [layer.parameters() for layer in layers])

    def run() -> None:
        if spec["how"] == "first":
            ane.clear_cache()
        y = x
        for layer in layers:
            y = layer(y)
        mx.eval(y)

    def converted() -> NDArray[Any]:
        run()
        ane.reset_counters()
        run()
        names = ("weights_staged_bytes", "weights_packed_bytes")
        return np.array([sum(ane.counters()[name] for name in names)])

    return Timed(run, converted, least=0.0)


def _dispatch(spec: dict[str, Any]) -> Timed:
    """how: "linear", or "matmul" of MLX: in one process, as waking MLX's thread takes
    13 or 60 us in different ones."""
    if spec["how"] == "matmul":
        return side_mlx.dispatch(spec, mx.matmul)
    return side_mlx.dispatch(spec, lambda x, w: ane.linear(x, w, device="cpu"))


class _Step(WithParts):
    """A training step; apart, the seconds of each kind of span within it."""

    def run(self) -> dict[str, float]:
        """Seconds of one step, of its parts and of its spans, by name."""
        recorder = ane.timeline()
        recorder.start()
        start = time.perf_counter()
        loss = self._run()
        seconds = {"seconds": time.perf_counter() - start, "loss": loss}
        recorder.stop()
        seconds |= self.part_seconds()
        for (_, kind), row in recorder.totals().items():
            for name, scale in (("ms", 1e-3), ("flops", 1.0)):
                key = f"{kind} {'seconds' if name == 'ms' else name}"
                seconds[key] = seconds.get(key, 0.0) + row[name] * scale
        return seconds


def _step(spec: dict[str, Any]) -> Timed:
    """how: "cpu", "emulated" or "ane"."""
    arrays = step_inputs(spec)
    if spec.get("fused"):
        model = Model(
            spec,
            arrays,
            attention=lambda *a, **k: ane.fast.scaled_dot_product_attention(
                *a, device="cpu", **k
            ),
            swiglu=ane.fast.swiglu,
            losses=ane.fast.cross_entropy,
        )
    else:
        model = Model(spec, arrays)
    ane.convert(model, device=spec["how"])
    optimizer = ane.optimizers.AdamW(LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY)
    step = train_step(model, optimizer, mx.array(arrays["tokens"]))
    parts = {"embedding": side_mlx.embedding(spec, ane.nn.ANEEmbedding, least=0.0)}
    return _Step(step, lambda: np.array([step()]), parts)

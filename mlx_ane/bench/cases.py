"""What is measured: the cases of each part, their sides and their targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_ane._adam import label
from mlx_ane.bench import inputs

PARTS = ("adam", "embedding", "gemm", "pack", "dispatch", "step")


@dataclass(frozen=True)
class Variant:
    """One way to do a case's work: a side, and what tells it apart."""

    label: str
    side: str
    spec: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-5
    checked: bool = True


@dataclass(frozen=True)
class Case:
    """One quantity: ratios are time of `baseline` over time of the variant."""

    part: str
    name: str
    spec: dict[str, Any]
    variants: tuple[Variant, ...]
    baseline: str
    work: float
    unit: str
    targets: dict[str, str] = field(default_factory=dict)
    #: The side, and additions to the spec, whose answer is the right one; None
    #: where `expected` knows it.
    compared_with: tuple[str, dict[str, Any]] | None = None

    def expected(self, variant: Variant) -> NDArray[Any]:
        """What the variant must compute, in float64."""
        spec = self.spec | variant.spec
        if self.part == "adam":
            return inputs.adam_expected(spec)
        if self.part == "embedding":
            return inputs.embedding_expected(spec)
        if self.part == "gemm":
            return inputs.gemm_expected(spec, spec.get("dtype", "float32"))
        if self.part == "pack":
            x = inputs.uniform(0, spec["rows"], spec["cols"]).astype(np.float16)
            return inputs.sample(x.astype(np.float32))
        return np.zeros(1) if "frozen" in spec else np.ones((1, 8))


def cases(part: str, peers: tuple[str, ...], small: bool) -> Iterator[Case]:
    """The cases of a part.

    Args:
        part (str): One of PARTS.
        peers (tuple[str, ...]): Other libraries to measure.
        small (bool): Sizes that take seconds, to try the benchmark itself.
    """
    makers = {
        "adam": _adam,
        "embedding": _embedding,
        "gemm": _gemm,
        "pack": _pack,
        "dispatch": _dispatch,
        "step": _step,
    }
    return makers[part](peers, small)


def _adam(peers: tuple[str, ...], small: bool) -> Iterator[Case]:
    list_110m = [(32000, 768)] + 12 * (4 * [(768, 768)] + 3 * [(2048, 768)])
    lists: Mapping[str, Sequence[tuple[int, ...]]] = {
        "2.4 M, one tensor": [(2_400_000,)],
        "2.4 M, 110 tensors": 110 * [(21_818,)],
        "3.2 M, 392 tensors": 392 * [(8_192,)],  # adapters of 28 layers
        "110 M, 85 tensors": list_110m,
    }
    if small:
        lists = {"20 k, 3 tensors": [(10_000,), (5_000,), (5_000,)]}
    targets = {
        "2.4 M, one tensor": {"kernel": ">= 0.95", "update": ">= 0.80"},
        "2.4 M, 110 tensors": {"update": ">= 0.50"},
        "110 M, 85 tensors": {"kernel": ">= 0.95", "update": ">= 0.95"},
    }
    for name, shapes in lists.items():
        variants = [
            Variant("bandwidth bound", "ours", {"how": "traffic"}, checked=False),
            Variant("kernel", "ours", {"how": "kernel"}),
            Variant(label("accelerate"), "ours", {"how": "accelerate"}),
            Variant("update", "ours", {"how": "update"}),
            Variant("ten passes", "ours", {"how": "passes"}),
            Variant("reference loop", "ours", {"how": "reference"}),
        ]
        if "mlx" in peers:
            variants.append(Variant("mlx", "mlx"))
            variants.append(Variant("mlx compiled", "mlx", {"compiled": True}))
        if "torch" in peers:
            variants.append(Variant("torch fused", "torch"))
        elements = sum(int(np.prod(shape)) for shape in shapes)
        yield Case(
            "adam",
            name,
            {"shapes": shapes},
            tuple(variants),
            "bandwidth bound",
            28e-9 * elements,
            "GB/s",
            targets.get(name, {}),
        )


def _embedding(peers: tuple[str, ...], small: bool) -> Iterator[Case]:
    """The lookup of tokens and the scatter of its gradient, as a step has them."""
    model = step_spec(small)
    sizes = [model["S"], 8 * model["S"]]
    for S in sizes:
        spec = {"vocabulary": model["vocabulary"], "dim": model["dim"], "S": S}
        yield Case(
            "embedding",
            f"{spec['vocabulary']} x {spec['dim']}, S {S}",
            spec,
            (
                Variant("ANEEmbedding", "ours"),
                *(Variant(p, p) for p in ("mlx", "torch", "numpy") if p in peers),
            ),
            "ANEEmbedding",
            4e-9 * spec["vocabulary"] * spec["dim"],
            "GB/s of gradient",
        )


def _gemm(peers: tuple[str, ...], small: bool) -> Iterator[Case]:
    shapes = [(768, 768), (768, 2048), (2048, 768), (768, 32000), (1024, 3072)]
    sizes = [(S, *shape) for S in (256, 1024, 4096) for shape in shapes]
    if small:
        sizes = [(33, 48, 65)]
    halves = {"float16": 2e-3, "bfloat16": 1.6e-2}
    for S, K, N in sizes:
        for role in ("dx", "dW"):
            variants = [
                Variant("FMA peak", "ours", {"how": "peak"}, checked=False),
                Variant("cblas", "ours", {"how": "cblas"}),
                Variant("mx.vjp", "ours", {"how": "grad"}),
            ]
            for dtype, tolerance in halves.items():
                spec = {"how": "grad", "dtype": dtype}
                variants.append(Variant(f"mx.vjp {dtype}", "ours", spec, tolerance))
            # A product by the plain loops takes seconds where others take ms.
            if S * K * N < 1e9:
                variants.append(Variant("reference", "ours", {"how": "reference"}))
                variants += [Variant(p, p) for p in ("mlx",) if p in peers]
            variants += [Variant(p, p) for p in ("mkl", "torch", "numpy") if p in peers]
            yield Case(
                "gemm",
                f"{role}, S {S}, K {K}, N {N}",
                {"role": role, "S": S, "K": K, "N": N},
                tuple(variants),
                "cblas",
                2e-9 * S * K * N,
                "GFLOP/s",
                {"mx.vjp": ">= 0.97 of cblas, >= 0.80 of the peak"},
            )
    for S, K, N in ((256, 768, 2048), (1024, 1024, 3072)) if not small else sizes:
        for role in ("dx", "dW"):
            yield _threads(role, S, K, N)


def _threads(role: str, S: int, K: int, N: int) -> Case:
    """One and two threads, with the cores idle and with one busy neighbour."""
    variants = [
        Variant(
            f"{threads} thread{'s' * (threads > 1)}{', busy neighbour' * neighbours}",
            "ours",
            {"how": "grad", "threads": threads, "neighbours": neighbours},
        )
        for neighbours in (0, 1)
        for threads in (1, 2)
    ]
    return Case(
        "gemm",
        f"threads, {role}, S {S}, K {K}, N {N}",
        {"role": role, "S": S, "K": K, "N": N},
        tuple(variants),
        "1 thread",
        2e-9 * S * K * N,
        "GFLOP/s",
        {
            "2 threads": ">= 1.54 (0.65x)",
            "2 threads, busy neighbour": ">= 0.95 of 1 thread's (1.05x)",
        },
    )


def _pack(peers: tuple[str, ...], small: bool) -> Iterator[Case]:
    shapes = [(256, 768), (256, 2048), (1024, 2048), (4096, 768), (4096, 2048)]
    if small:
        shapes = [(40, 70)]
    for cold in (True, False):
        for rows, cols in shapes:
            if not cold and 6 * rows * cols > 2 << 20:
                continue
            variants = (
                Variant("memcpy", "ours", {"how": "memcpy"}, checked=False),
                Variant("pack", "ours", {"how": "pack"}, 0.0),
                Variant("unpack", "ours", {"how": "unpack"}, 0.0),
                Variant("straight", "ours", {"how": "straight"}, 0.0),
            )
            targets = {"pack": ">= 0.70", "unpack": ">= 0.70", "straight": ">= 0.95"}
            if not cold:
                targets = {"pack": ">= 0.55", "unpack": ">= 0.70"}
            yield Case(
                "pack",
                f"({rows}, {cols}) {'cold' if cold else 'hot'}",
                {"rows": rows, "cols": cols, "cold": cold},
                variants,
                "memcpy",
                6e-9 * rows * cols,
                "GB/s",
                targets,
            )


def _dispatch(peers: tuple[str, ...], small: bool) -> Iterator[Case]:
    for chain, target in ((1, ">= 0.87 (1.15x)"), (50, ">= 0.67 (1.5x)")):
        yield Case(
            "dispatch",
            "1x8 @ 8x8" if chain == 1 else f"compiled chain of {chain}",
            {"chain": chain},
            (
                Variant("mx.matmul", "ours", {"how": "matmul"}),
                Variant("ane.linear", "ours", {"how": "linear"}),
            ),
            "mx.matmul",
            1e-6,
            "M calls/s",
            {"ane.linear": target},
        )
    frozen = {"frozen": 28, "dim": 32 if small else 512, "S": 64}
    yield Case(
        "dispatch",
        f"{frozen['frozen']} frozen layers on emulated, bytes converted",
        frozen,
        (
            Variant("first forward", "ours", {"how": "first"}, checked=False),
            Variant("second forward", "ours", {"how": "second"}, 0.0),
        ),
        "first forward",
        4e-9 * frozen["frozen"] * frozen["dim"] ** 2,
        "GB/s",
        {"second forward": "0 bytes of weights"},
    )


def step_spec(small: bool) -> dict[str, Any]:
    """Sizes of the model: those of Stories110M, or a few kilobytes."""
    if small:
        return {
            "layers": 2,
            "dim": 32,
            "hidden": 48,
            "heads": 2,
            "vocabulary": 64,
            "S": 33,
        }
    return {
        "layers": 12,
        "dim": 768,
        "hidden": 2048,
        "heads": 12,
        "vocabulary": 32000,
        "S": 256,
    }


def _step(peers: tuple[str, ...], small: bool) -> Iterator[Case]:
    spec = step_spec(small)
    dim, layers = spec["dim"], spec["layers"]
    weights = layers * dim * (4 * dim + 3 * spec["hidden"])
    weights += spec["vocabulary"] * dim
    fused = {"fused": True}
    variants = [
        Variant("cpu", "ours", {"how": "cpu"}, 1e-4),
        Variant("cpu, fused ops", "ours", {"how": "cpu", **fused}, 1e-4),
        Variant("emulated, fused ops", "ours", {"how": "emulated", **fused}, 2e-2),
    ]
    variants += [Variant(p, p, {}, 1e-4) for p in ("mlx", "mkl", "torch") if p in peers]
    yield Case(
        "step",
        f"{weights / 1e6:.3g} M parameters, S {spec['S']}",
        spec,
        tuple(variants),
        "cpu, fused ops",
        6e-9 * weights * spec["S"],
        "GFLOP/s",
        {"mlx": "<= 0.050", "mkl": "<= 0.50", "torch": "<= 0.77"},
        compared_with=("mlx", {"loss_only": True}),
    )

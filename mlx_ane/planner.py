"""plan(): programs, placement, memory and expected time before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import mlx.core as mx
from mlx import nn

from mlx_ane import _ext
from mlx_ane._exchange import originals
from mlx_ane._layers import (
    CLASSES,
    Site,
    find_sites,
    holds_matrix,
    product_shape,
    why_not,
)
from mlx_ane._watch import checked_shapes, rows_of_products
from mlx_ane.chips import HOST_BANDWIDTH, UNCERTAINTY, Chip, Figure, find
from mlx_ane.report import table

#: The size of a program: rows, depth and columns, padded.
Program = tuple[int, int, int]


@dataclass
class PlannedCall:
    """The calls of one layer with one number of rows."""

    path: str
    kind: str
    #: Rows (tokens) S, depth K, columns N of y (S, N) = x (S, K) w (N, K)ᵀ.
    rows: int
    k: int
    n: int
    #: "engine" or "cpu", and the reason for "cpu".
    place: str
    why: str
    #: Program of each call with how often it runs, and the tiles it stands for.
    programs: dict[Program, int]
    k_splits: int
    n_tiles: int
    #: Rows after padding to buckets.
    padded_rows: int
    frozen: bool
    #: Bytes of the weight staged on the engine, and of MLX's own copy.
    staged_bytes: int
    weight_bytes: int
    #: Expected seconds of the forward product; None where no figure is published.
    engine_seconds: float
    gpu_seconds: float | None
    cpu_seconds: float | None


@dataclass
class Plan:
    """What a model would ask of an engine; printed, a table.

    Times are estimates from published figures of the chip (mlx_ane.chips), right
    within a factor of two at best: they rank layers, they promise nothing.
    """

    chip: str
    shapes: list[tuple[int, ...]]
    calls: list[PlannedCall]
    #: Layers that hold a matrix and stay on MLX: path and reason.
    skipped: dict[str, str]
    #: Programs that may be resident at once.
    budget: int
    figures: dict[str, Figure] = field(default_factory=dict)

    @property
    def programs(self) -> set[Program]:
        """Distinct programs of the calls placed on the engine."""
        return {
            p for call in self.calls if call.place == "engine" for p in call.programs
        }

    @property
    def padding_waste(self) -> float:
        """Rows that are padding, as a share of the rows the engine computes."""
        on_engine = [call for call in self.calls if call.place == "engine"]
        padded = sum(call.padded_rows for call in on_engine)
        return 1.0 - sum(call.rows for call in on_engine) / padded if padded else 0.0

    @property
    def staged_bytes(self) -> int:
        """Bytes of staged weights: frozen layers on the engine, each once."""
        by_layer = {
            call.path: call.staged_bytes
            for call in self.calls
            if call.place == "engine" and call.frozen
        }
        return sum(by_layer.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the same layers' weights in MLX."""
        return sum({call.path: call.weight_bytes for call in self.calls}.values())

    @property
    def seconds(self) -> float:
        """Expected engine time of a forward pass, the mean over the shapes."""
        total = sum(c.engine_seconds for c in self.calls if c.place == "engine")
        return total / len(self.shapes)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values, ready for JSON."""
        calls = [
            {
                **asdict(call),
                "programs": [[*p, times] for p, times in call.programs.items()],
            }
            for call in self.calls
        ]
        return {
            "chip": self.chip,
            "shapes": [list(shape) for shape in self.shapes],
            "calls": calls,
            "skipped": self.skipped,
            "programs": sorted(map(list, self.programs)),
            "budget": self.budget,
            "padding_waste": self.padding_waste,
            "staged_bytes": self.staged_bytes,
            "weight_bytes": self.weight_bytes,
            "seconds": self.seconds,
            "uncertainty": UNCERTAINTY,
            "figures": {name: asdict(f) for name, f in self.figures.items()},
        }

    def __str__(self) -> str:
        head = (
            "layers",
            "S",
            "K",
            "N",
            "place",
            "K/N tiles",
            "ms",
            "gpu",
            "cpu",
            "why",
        )
        milliseconds = self.seconds * 1e3
        lines = [
            f"plan for {self.chip}, batch shapes {', '.join(map(str, self.shapes))}",
            "",
            *table([head, *_rows(self.calls)]),
            "",
            f"programs: {len(self.programs)} of {self.budget}; padding: "
            f"{self.padding_waste:.0%} of the rows computed",
            f"staged weights: {self.staged_bytes / 1e6:.1f} MB beside MLX's "
            f"{self.weight_bytes / 1e6:.1f} MB (trained layers are packed each call)",
            f"forward on the engine: about {milliseconds:.2f} ms "
            f"({milliseconds / UNCERTAINTY:.2f} to {milliseconds * UNCERTAINTY:.2f})",
        ]
        lines += [
            f"  {name}: {f.value:.3g} ({f.source})" for name, f in self.figures.items()
        ]
        lines += [f"not on the engine: {p}: {why}" for p, why in self.skipped.items()]
        return "\n".join(lines)


def plan(
    model: nn.Module,
    batch_shape: Sequence[int] | Sequence[Sequence[int]],
    *,
    chip: str | None = None,
) -> Plan:
    """Predict what a model asks of a Neural Engine, for any chip, anywhere.

    The model is traced lazily on zeros: nothing is computed or compiled, and the model
    and MLX's random state are left as they were.

    Args:
        model (nn.Module): A plain or converted model.
        batch_shape (Sequence[int] or Sequence of them): Shape of the input,
            (batch, tokens) for a language model; several for a distribution of
            lengths.
        chip (str, optional): "M1" to "M6", with or without Pro, Max or Ultra, or an
            architecture ("h13" to "h18" with any suffix); None is this machine's, or
            M4 where there is no engine.

    Returns:
        Plan: Programs against the budget, placement and why, memory, time.

    Raises:
        ValueError: If the chip is unknown or the model refuses the shape.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64))
        >>> len(ane.plan(model, (128, 64), chip="M1").programs)
        2
    """
    named = _ext.planning.chip(chip or _this_chip(), "mlx_ane.plan")
    key, figures = named["architecture"], find(named["architecture"])[1]
    shapes = checked_shapes(batch_shape, "plan")
    sites = [site for site in find_sites(model) if holds_matrix(site.module)]
    limits = _ext.planning.limits(key)
    with originals(site.module for site in sites):
        skipped = {
            site.name: reason
            for site in sites
            if (reason := why_not(site.module, site.parent)) is not None
        }
        watched = [(site, site.module) for site in sites if site.name not in skipped]
        calls = [
            _planned(site, rows, key, figures)
            for shape in shapes
            for site, rows in rows_of_products(model, watched, shape, "plan")
        ]
    _keep_within_budget(calls, limits["resident_programs"])
    return Plan(
        chip=f"{named['name']} ({key})",
        shapes=shapes,
        calls=calls,
        skipped=skipped,
        budget=limits["resident_programs"],
        figures={
            "floor of a call, s": figures.floor,
            "bandwidth, byte/s": figures.bandwidth,
            "compute, FLOP/s": figures.compute,
            "host conversion, byte/s": HOST_BANDWIDTH,
        },
    )


def _this_chip() -> str:
    """The engine of this machine, or the chip that the emulated device plays."""
    name = "emulated" if _ext.unavailable("ane") is not None else "ane"
    return str(_ext.device_info(name).get("chip", "h16g"))


def _planned(site: Site, rows: int, key: str, chip: Chip) -> PlannedCall:
    """Tiles, memory and time of one product."""
    module = site.module
    n, k = product_shape(module)
    tiles = _ext.planning.plan_matmul(max(rows, 1), k, n, key)
    depth, columns = tiles["depth"], tiles["columns"]
    programs: Counter[Program] = Counter()
    for row in tiles["rows"]:
        programs[row[2], depth[0][2], columns[0][2]] += len(depth) * len(columns)
    flops = 2.0 * rows * k * n
    min_rows = _ext.planning.min_rows()
    few = rows < min_rows
    return PlannedCall(
        path=site.path,
        kind=CLASSES[type(module)].__name__,
        rows=rows,
        k=k,
        n=n,
        place="cpu" if few else "engine",
        why=f"few rows ({rows} < {min_rows})" if few else "",
        programs=dict(programs),
        k_splits=len(depth),
        n_tiles=len(columns),
        padded_rows=sum(row[2] for row in tiles["rows"]),
        frozen="weight" in module._no_grad,
        staged_bytes=tiles["staged_bytes"],
        weight_bytes=sum(a.nbytes for a in module.values() if isinstance(a, mx.array)),
        engine_seconds=_seconds(programs, rows, k, n, chip),
        gpu_seconds=flops / chip.gpu.value if chip.gpu else None,
        cpu_seconds=flops / chip.cpu.value if chip.cpu else None,
    )


def _seconds(
    programs: Counter[Program], rows: int, k: int, n: int, chip: Chip
) -> float:
    """Calls with all operands in fp16, and conversion of x and y on the host."""
    engine = sum(
        times * chip.seconds(2.0 * s * k_ * n_, 2.0 * (s * k_ + n_ * k_ + s * n_))
        for (s, k_, n_), times in programs.items()
    )
    # fp32 and fp16 of each element of x, and of y once for each K split.
    splits = -(-k // max(k_ for _, k_, _ in programs))
    return engine + 6.0 * rows * (k + n * splits) / HOST_BANDWIDTH.value


def _keep_within_budget(calls: list[PlannedCall], budget: int) -> None:
    """Place on the CPU what needs programs beyond the budget, least used first."""
    uses: Counter[Program] = Counter()
    for call in calls:
        if call.place == "engine":
            uses.update(call.programs)
    kept = {program for program, _ in uses.most_common(budget)}
    for call in calls:
        if call.place == "engine" and not kept.issuperset(call.programs):
            call.place, call.why = "cpu", f"over the budget of {budget} programs"


def _rows(calls: list[PlannedCall]) -> Iterator[tuple[str, ...]]:
    """One line for all layers of a shape."""
    groups: dict[tuple[Any, ...], list[PlannedCall]] = {}
    for call in calls:
        key = (call.rows, call.k, call.n, call.place, call.why)
        groups.setdefault(key, []).append(call)
    for group in groups.values():
        call = group[0]
        name = (
            call.path if len(group) == 1 else f"{call.path} and {len(group) - 1} more"
        )
        yield (
            name,
            str(call.rows),
            str(call.k),
            str(call.n),
            call.place,
            f"{call.k_splits}/{call.n_tiles}",
            _ms(call.engine_seconds * len(group)),
            _ms(call.gpu_seconds and call.gpu_seconds * len(group)),
            _ms(call.cpu_seconds and call.cpu_seconds * len(group)),
            call.why,
        )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f}"

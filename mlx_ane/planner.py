"""plan(): programs, placement, memory and expected time before anything runs."""

from __future__ import annotations

import html
import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from mlx_ane import _ext
from mlx_ane._console import WIDTH, reason, some, table, wrapped
from mlx_ane._exchange import originals
from mlx_ane._layers import (
    CLASSES,
    Site,
    find_sites,
    holds_matrix,
    product_shape,
    why_not,
)
from mlx_ane._types import Device
from mlx_ane._watch import checked_shapes, rows_of_products
from mlx_ane.autotune import Measurements, host_bandwidth
from mlx_ane.block import BlockProgram
from mlx_ane.blocks import block_function, find_blocks, is_composite, why_placed
from mlx_ane.chips import UNCERTAINTY, Chip, Figure, find
from mlx_ane.compile import Blocks, block_of
from mlx_ane.estimate import (
    WAYS,
    Block,
    Call,
    Estimate,
    Product,
    advice,
    estimates,
    milliseconds,
    products_of,
    two_digits,
)

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
    #: Expected seconds of the forward product.
    engine_seconds: float
    gpu_seconds: float
    cpu_seconds: float

    @property
    def flops(self) -> float:
        """Floating-point operations of the forward product."""
        return 2.0 * self.rows * self.k * self.n


#: A product of a pass: its layer, and what is planned for it.
_Made = tuple[Site, PlannedCall]


@dataclass
class PlannedBlock:
    """A block, or a part of one, and whether it can be a program."""

    path: str
    kind: str
    #: Shape of the model's input.
    shape: tuple[int, ...]
    #: Why it cannot: its parts, or its layers, are looked at instead. Empty if it can.
    why: str


@dataclass(repr=False)
class Plan:
    """What a model would ask of an engine; printed, a table and a conclusion.

    Times are estimates from published figures of the chip (mlx_ane.chips), or from
    what this machine measured, right within a factor of two at best.
    """

    chip: str
    shapes: list[tuple[int, ...]]
    calls: list[PlannedCall]
    #: Layers that hold a matrix and stay on MLX: path and reason.
    skipped: dict[str, str]
    #: Programs that may be resident at once.
    budget: int
    #: By shape: of a forward pass, and of a training step if anything is trained.
    estimates: list[Estimate]
    blocks: list[PlannedBlock]
    #: Distinct programs of the blocks, forward and gradient.
    block_programs: int
    #: Bytes of all parameters by dtype, and how many are trained.
    parameter_bytes: dict[str, int]
    trained_parameters: int
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
        """Bytes of the layers' weights in MLX."""
        return sum({call.path: call.weight_bytes for call in self.calls}.values())

    @property
    def name(self) -> str:
        """The chip without its architecture."""
        return self.chip.partition(" (")[0]

    @property
    def largest(self) -> Estimate:
        """Of the largest shape: of a step if anything is trained."""
        return max(self.estimates, key=lambda e: (math.prod(e.shape), e.what))

    @property
    def advice(self) -> str:
        """One sentence for the largest shape: which device, and what to expect."""
        return advice(self.largest, self.name)

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
            "blocks": [asdict(block) for block in self.blocks],
            "block_programs": self.block_programs,
            "budget": self.budget,
            "padding_waste": self.padding_waste,
            "staged_bytes": self.staged_bytes,
            "weight_bytes": self.weight_bytes,
            "parameter_bytes": self.parameter_bytes,
            "trained_parameters": self.trained_parameters,
            "estimates": [asdict(estimate) for estimate in self.estimates],
            "advice": self.advice,
            "uncertainty": UNCERTAINTY,
            "figures": {name: asdict(f) for name, f in self.figures.items()},
        }

    def __repr__(self) -> str:
        return f"<Plan: {self.advice}>"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def __str__(self) -> str:
        head = ("layers", "S", "K", "N", "tiles", "engine", "GPU", "CPU", "best")
        passes = ("forward", "training step")[: len({e.what for e in self.estimates})]
        lines = [
            f"plan for {self.chip}; times in ms",
            "",
            *table([head, *_rows(self.calls)]),
            *_placed(self.calls),
            *_skipped(self.skipped),
            "",
            *wrapped(self._programs_line()),
            *wrapped(self._weights_line()),
            *(line for b in self._not_programs() for line in wrapped(b)),
            "",
            *table([("input", "whole model", *passes), *_totals(self.estimates)]),
            "",
            *textwrap.wrap(self.advice, WIDTH),
            "",
            f"Estimates, right within a factor of {UNCERTAINTY:g} at best, from:",
        ]
        for name, f in self.figures.items():
            lines += wrapped(f"  {name} {f.value:.3g}: {f.source}")
        return "\n".join(lines)

    def _programs_line(self) -> str:
        by_blocks = f", {self.block_programs} by blocks" if self.block_programs else ""
        return (
            f"programs: {len(self.programs)} by layers{by_blocks}, of {self.budget}; "
            f"padding: {self.padding_waste:.0%} of the rows computed"
        )

    def _weights_line(self) -> str:
        total = sum(self.parameter_bytes.values())
        packed = any(c.place == "engine" and not c.frozen for c in self.calls)
        return (
            f"weights: {total / 1e6:.1f} MB ({', '.join(self.parameter_bytes)}), "
            f"{self.trained_parameters / 1e6:.3g} M trained; staged on the engine: "
            f"{self.staged_bytes / 1e6:.1f} MB"
            + " (trained layers are packed in each call)"
            * packed
        )

    def _not_programs(self) -> list[str]:
        whys: dict[str, list[str]] = {}
        for block in self.blocks:
            if block.why:
                whys.setdefault(block.why, []).append(block.path)
        return [f"no program: {some(p)}: {why}" for why, p in whys.items()]


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
    return planned(model, checked_shapes(batch_shape, "plan"), chip)


def planned(
    model: nn.Module,
    shapes: list[tuple[int, ...]],
    chip: str | None = None,
    device: Device | None = None,
) -> Plan:
    """`plan` for checked shapes, with what was measured on a device of this machine.

    Args:
        model (nn.Module): See `plan`.
        shapes (list): Shapes of the input.
        chip (str, optional): See `plan`.
        device (str, optional): An engine, whose measurements count; the Neural Engine
            where this machine has it and ``chip`` is None.
    """
    if chip is None and device is None and _ext.unavailable("ane") is None:
        device = "ane"
    named = _ext.planning.chip(chip or _this_chip(device), "mlx_ane.plan")
    key, figures = named["architecture"], find(named["name"])[1]
    limits = _ext.planning.limits(key)
    sites = find_sites(model)
    layers = [site for site in sites if holds_matrix(site.module)]
    with originals(site.module for site in sites):
        skipped = {
            site.name: reason
            for site in layers
            if (reason := why_not(site.module, site.parent)) is not None
        }
        used = [(site, site.module) for site in layers if site.name not in skipped]
        if device is not None:
            figures = _measured(figures, key, device)
        blocks = _Blocks(sites)
        passes = []
        for shape in shapes:
            entered: list[Any] = []
            rows = rows_of_products(model, used, shape, "plan", blocks.watched, entered)
            products = [(s, _planned(s, n, key, figures)) for s, n in rows]
            passes.append((shape, products, entered))
        calls = [call for _, products, _ in passes for _, call in products]
        _keep_within_budget(calls, limits["resident_programs"])
        trained = _trained(model)
        estimated = [
            estimate
            for shape, products, entered in passes
            for estimate in _estimates(
                shape,
                products,
                _first_trained(sites, products),
                blocks.programs(shape, products, entered),
                sum(array.nbytes for array in trained),
                figures,
            )
        ]
        parameters = Counter[str]()
        for _, array in tree_flatten(model.parameters()):
            parameters[str(array.dtype).removeprefix("mlx.core.")] += array.nbytes
    return Plan(
        chip=f"{named['name']} ({key})",
        shapes=shapes,
        calls=calls,
        skipped=skipped,
        budget=limits["resident_programs"],
        estimates=estimated,
        blocks=blocks.planned,
        block_programs=len(blocks.distinct),
        parameter_bytes=dict(parameters),
        trained_parameters=sum(array.size for array in trained),
        figures={
            "floor of a call, s": figures.floor,
            "bandwidth, byte/s": figures.bandwidth,
            "compute, FLOP/s": figures.compute,
            "GPU, FLOP/s": figures.gpu,
            "CPU, FLOP/s": figures.cpu,
            "start of a product on the GPU, s": figures.gpu_launch,
            "start of a product on the CPU, s": figures.cpu_launch,
            "host conversion, byte/s": figures.host,
            "memory (Adam), byte/s": figures.memory,
        },
    )


def _this_chip(device: Device | None) -> str:
    """The engine of this machine, or the chip that the emulated device plays."""
    return str(_ext.device_info(device or "emulated").get("chip", "h16g"))


def _planned(site: Site, rows: int, key: str, chip: Chip) -> PlannedCall:
    """Tiles, memory and time of one product."""
    module = site.module
    n, k = product_shape(module)
    tiles = _ext.planning.plan_matmul(max(rows, 1), k, n, key)
    programs = _programs(rows, k, n, key)
    flops = 2.0 * rows * k * n
    frozen = "weight" in module._no_grad
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
        k_splits=len(tiles["depth"]),
        n_tiles=len(tiles["columns"]),
        padded_rows=sum(row[2] for row in tiles["rows"]),
        frozen=frozen,
        staged_bytes=tiles["staged_bytes"],
        weight_bytes=sum(a.nbytes for a in module.values() if isinstance(a, mx.array)),
        engine_seconds=_seconds(programs, rows, k, n, chip)
        + (0.0 if frozen else chip.converting(k * n)),
        gpu_seconds=chip.on_gpu(flops),
        cpu_seconds=chip.on_cpu(flops),
    )


def _programs(rows: int, k: int, n: int, key: str) -> Counter[Program]:
    """The programs of a product, each with how often it runs."""
    tiles = _ext.planning.plan_matmul(max(rows, 1), k, n, key)
    depth, columns = tiles["depth"], tiles["columns"]
    programs: Counter[Program] = Counter()
    for row in tiles["rows"]:
        programs[row[2], depth[0][2], columns[0][2]] += len(depth) * len(columns)
    return programs


def _seconds(
    programs: Counter[Program], rows: int, k: int, n: int, chip: Chip
) -> float:
    """Calls with all operands in fp16, and conversion of x and y on the host."""
    engine = sum(
        times * chip.seconds(2.0 * s * k_ * n_, 2.0 * (s * k_ + n_ * k_ + s * n_))
        for (s, k_, n_), times in programs.items()
    )
    # Each element of x, and of y once for each K split.
    splits = -(-k // max(k_ for _, k_, _ in programs))
    return engine + chip.converting(rows * (k + n * splits))


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


class _Blocks:
    """The blocks of a model, and their programs for each shape of its input."""

    def __init__(self, sites: list[Site]) -> None:
        tops = find_blocks(sites)
        self._sites = sites
        inside = {id(m) for top in tops for m in top.module.modules()}
        #: Blocks and what they are made of, above layers.
        self.watched = [
            (s, s.module)
            for s in sites
            if id(s.module) in inside and is_composite(s.module)
        ]
        self._tops = tops
        self.planned: list[PlannedBlock] = []
        #: Programs by identity.
        self.distinct: dict[int, BlockProgram] = {}
        self._captured: Blocks = {}

    def programs(
        self, shape: tuple[int, ...], products: list[_Made], entered: list[Any]
    ) -> list[tuple[set[int], Block]]:
        """Costs of each call that is a program, with the modules that it computes.

        Args:
            shape: Shape of the model's input.
            products: Of the pass, in order.
            entered: Calls of `watched` in that pass.
        """
        first = _first_trained(self._sites, products)
        found: list[tuple[set[int], Block]] = []
        left = list(self._tops)
        while left:
            site = left.pop(0)
            module = site.module
            inside = {id(m) for m in module.modules()}
            indices = [i for i, (s, _) in enumerate(products) if id(s.module) in inside]
            calls = [call[1:] for call in entered if call[0] is site]
            made = [products[i][1] for i in indices]
            dx, why = bool(indices) and first < indices[0], ""
            try:
                for args, kwargs in calls:
                    placed = why_placed("emulated", args, kwargs)
                    if placed is None:
                        block = self._block(module, args, kwargs, dx)
                        found.append((inside, _less(block, made, len(calls))))
                    else:
                        why = placed.replace("_", " ")
            except (RuntimeError, ValueError) as error:  # Unsupported, or MLX's own
                why = reason(error).rpartition("] ")[2]
                left = [s for s, _ in self.watched if s.parent is module] + left
            self.planned.append(
                PlannedBlock(site.path, type(module).__name__, shape, why)
            )
        return found

    def _block(self, module: nn.Module, args: Any, kwargs: Any, dx: bool) -> Block:
        """Costs of one call, the products of layers among the others."""
        given = (module, *args)
        block = block_of(block_function(type(module)), given, kwargs, self._captured)
        capture, staged = block.captured, block.frozen(given, kwargs)
        trained = set(map(id, _trained(module)))
        leaves = zip(
            capture.prologue.inputs,
            capture.flatten(given, kwargs),
            strict=False,  # constants and the random key come after
        )
        trains = capture.prologue.reached_from(v for v, a in leaves if id(a) in trained)
        asked = trains | (set(capture.data) if dx else set())
        wanted = [i for i in block.differentiable if capture.body.inputs[i] in asked]
        programs, backward = [block.forward], None
        if wanted:
            programs.append(block.backward(wanted))
            cotangents = [False] * programs[1].cotangents
            backward = Call.of(programs[1], [*cotangents, *staged])
        self.distinct |= {id(program): program for program in programs}
        return Block(
            Call.of(block.forward, staged), backward, *products_of(block.forward)
        )


def _less(block: Block, made: list[PlannedCall], calls: int) -> Block:
    """Without the products that layers make in one of so many equal calls."""
    return replace(
        block,
        others=max(block.others - len(made) // calls, 0),
        other_flops=max(block.other_flops - sum(c.flops for c in made) / calls, 0.0),
    )


def _first_trained(sites: list[Site], products: list[_Made]) -> int:
    """Index of the first product with a trained weight, its own or of LoRA.

    -1 if a table is trained, or a layer that makes no product: it may be upstream.
    """
    made = {id(site.module) for site, _ in products}
    for site in sites:
        table = isinstance(site.module, (nn.Embedding, nn.QuantizedEmbedding))
        alone = id(site.module) not in made and not site.module.children()
        if (table or alone) and holds_matrix(site.module) and _trains(site.module):
            return -1
    for i, (site, _) in enumerate(products):
        if _trains(site.module) or (site.parent is not None and _trains(site.parent)):
            return i
    return len(products)


def _trains(module: nn.Module) -> bool:
    """Whether an array of the module itself is trained."""
    frozen = vars(module).get("_no_grad", ())  # some forget nn.Module.__init__
    return any(
        isinstance(value, mx.array) and key not in frozen and not key.startswith("_")
        for key, value in module.items()
    )


def _trained(model: nn.Module) -> list[mx.array]:
    """The arrays that an optimizer would train."""
    if "_no_grad" not in vars(model):
        parts = tree_flatten(model.children(), is_leaf=nn.Module.is_module)
        return [array for _, part in parts for array in _trained(part)]
    return [array for _, array in tree_flatten(model.trainable_parameters())]


def _estimates(
    shape: tuple[int, ...],
    products: list[_Made],
    first: int,
    blocks: list[tuple[set[int], Block]],
    trained_bytes: int,
    chip: Chip,
) -> list[Estimate]:
    """Estimates from planned calls and the blocks that make them."""

    def block_of(site: Site) -> int | None:
        return next(
            (i for i, (inside, _) in enumerate(blocks) if id(site.module) in inside),
            None,
        )

    return estimates(
        shape,
        [
            Product(
                flops=call.flops,
                seconds=call.engine_seconds
                if call.place == "engine"
                else call.cpu_seconds,
                dx=i > first,
                dw=not call.frozen,
                block=block_of(site),
            )
            for i, (site, call) in enumerate(products)
        ],
        [block for _, block in blocks],
        trained_bytes,
        chip,
    )


def _measured(chip: Chip, key: str, device: Device) -> Chip:
    """The chip's figures, replaced by those that policy "auto" measured here."""
    chip = replace(chip, host=host_bandwidth())
    found = Measurements(device).products()
    if not found:
        return chip
    source = f"measured here, device {device!r}, {len(found)} products"
    flops = sum(2.0 * rows * k * n for rows, k, n, _, _ in found)
    expected = 0.0
    for rows, k, n, frozen, _ in found:
        expected += _seconds(_programs(rows, k, n, key), rows, k, n, chip)
        expected += 0.0 if frozen else chip.converting(k * n)
    total = {
        name: sum(seconds.get(name, math.nan) for *_, seconds in found)
        for name in (device, "cpu", "gpu")
    }
    slower = total[device] / expected
    chip = replace(
        chip,
        floor=Figure(chip.floor.value * slower, source),
        bandwidth=Figure(chip.bandwidth.value / slower, source),
        compute=Figure(chip.compute.value / slower, source),
        host=Figure(chip.host.value / slower, source),
        cpu=Figure(flops / total["cpu"], source),
    )
    if math.isfinite(total["gpu"]):
        chip = replace(chip, gpu=Figure(flops / total["gpu"], source))
    return chip


def _rows(calls: list[PlannedCall]) -> Iterator[tuple[str, ...]]:
    """One line for all layers of a shape."""
    groups: dict[tuple[Any, ...], list[PlannedCall]] = {}
    for call in calls:
        key = (call.rows, call.k, call.n, call.place)
        groups.setdefault(key, []).append(call)
    for group in groups.values():
        call, on_engine = group[0], group[0].place == "engine"
        seconds = {
            "engine": sum(c.engine_seconds for c in group) if on_engine else math.inf,
            "GPU": sum(c.gpu_seconds for c in group),
            "CPU": sum(c.cpu_seconds for c in group),
        }
        yield (
            some([c.path for c in group]),
            str(call.rows),
            str(call.k),
            str(call.n),
            f"{call.k_splits}/{call.n_tiles}",
            *(two_digits(1e3 * s) if s < math.inf else "-" for s in seconds.values()),
            min(seconds, key=seconds.__getitem__),
        )


def _placed(calls: list[PlannedCall]) -> Iterator[str]:
    """Why calls are on the CPU, one line a reason."""
    groups: dict[str, list[str]] = {}
    for call in calls:
        if call.why:
            groups.setdefault(call.why, []).append(call.path)
    for why, paths in groups.items():
        yield from wrapped(f"on the CPU: {some(paths)}: {why}")


def _skipped(skipped: dict[str, str]) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for path, why in skipped.items():
        groups.setdefault(why, []).append(path)
    for why, paths in groups.items():
        yield from wrapped(f"not on the engine: {some(paths)}: {why}")


def _totals(found: list[Estimate]) -> Iterator[tuple[str, ...]]:
    """For each shape one line for each way, with a column for each pass."""
    for shape in dict.fromkeys(e.shape for e in found):
        name = str(shape)
        for way, words in WAYS.items():
            seconds = [getattr(e, way) for e in found if e.shape == shape]
            if None not in seconds:
                yield name, words, *map(milliseconds, seconds)
                name = ""

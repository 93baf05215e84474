"""What convert() did to each layer, and what the layers did since."""

from __future__ import annotations

import html
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mlx_ane import _ext
from mlx_ane._attention import NAME, attention_device
from mlx_ane._console import some, table, wrapped
from mlx_ane._exchange import Exchanged

if TYPE_CHECKING:
    from mlx_ane.autotune import Decision
    from mlx_ane.estimate import Estimate


@dataclass
class ConvertedLayer:
    """A layer that convert() put on a device of ours.

    It may be placed anew since, or be plain again: another model may share it.
    """

    path: str
    #: Class name, such as ANELinear.
    kind: str
    #: (N, K): out_features, in_features.
    shape: tuple[int, ...]
    layer: Any = field(repr=False)
    #: Other paths that lead to the same layer.
    aliases: list[str] = field(default_factory=list)
    #: What policy "auto" measured, or None.
    decision: Decision | None = None
    #: Name in the counters.
    name: str = field(default="", repr=False)

    @property
    def device(self) -> str:
        """The device of the next call; "mlx" once the layer is plain again."""
        converted = isinstance(self.layer, Exchanged)
        return str(self.layer.device) if converted else "mlx"

    @property
    def frozen(self) -> bool:
        """Whether the weight is frozen now."""
        return "weight" in self.layer._no_grad


@dataclass
class SkippedLayer:
    """A layer that holds a matrix and stays on MLX, with the reason."""

    path: str
    kind: str
    shape: tuple[int, ...]
    reason: str

    @property
    def is_layer(self) -> bool:
        """Not a wrapper, as of LoRA, whose layer is listed apart."""
        return not self.kind.startswith(("LoRA", "DoRA"))


@dataclass
class AttendingModule:
    """A module that calls MLX's scaled_dot_product_attention, by ours or MLX's."""

    #: Its path, or the class name of the model itself.
    path: str
    #: Class name, such as MultiHeadAttention.
    kind: str
    module: Any = field(repr=False)
    #: What in it stays on MLX's function, and why; empty if nothing does.
    reason: str = ""

    @property
    def device(self) -> str:
        """The device of the next call; "mlx" if that is MLX's function."""
        return attention_device(self.module) or "mlx"


@dataclass(repr=False)
class ConversionReport:
    """Layers converted and skipped; printed, a summary with live placement.

    :meth:`full` has a line for each layer. Counts are those since
    :func:`mlx_ane.reset_counters`. A copy of a layer made with copy.deepcopy is
    counted with it.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8))
        >>> ane.convert(model, device="cpu").to_dict()["converted"][0]["path"]
        'layers.0'
    """

    converted: list[ConvertedLayer] = field(default_factory=list)
    skipped: list[SkippedLayer] = field(default_factory=list)
    #: Modules that attend, with attention="fused"; None without.
    attention: list[AttendingModule] | None = None
    #: "layer" or "block", and why it was chosen if it was "auto".
    granularity: str = "layer"
    why: str = ""
    #: One line where another granularity, or the GPU, is estimated to be faster.
    hint: str = ""
    #: Of a pass with the largest `batch_shape`, if one was given, on this chip.
    estimate: Estimate | None = None
    chip: str = ""
    #: Share of the time of `timed` that was spent outside these layers.
    outside: float | None = None

    def placement(self) -> dict[str, dict[str, Any]]:
        """What each converted layer did: calls, where, and why not on the device.

        Returns:
            dict: By path: "calls", and of these "on_device", "placed" and "fallback"
            (counts by cause); "bytes" moved and "ms" spent.
        """
        counts = _ext.layer_counters()
        return {c.path: _live(counts.get(c.name, {})) for c in self.converted}

    @property
    def placed(self) -> str:
        """How many blocks and layers were converted."""
        blocks = sum(not c.shape for c in self.converted)
        layers = len(self.converted) - blocks
        of = layers + sum(s.is_layer for s in self.skipped)
        return f"{blocks} blocks, " * bool(blocks) + f"{layers} of {of} layers"

    @property
    def lead(self) -> str:
        """One sentence: how many layers, where their calls went, and fallbacks."""
        live = list(self.placement().values())
        parts = [self.placed]
        calls = sum(row["calls"] for row in live)
        on_device = sum(row["on_device"] for row in live)
        devices = dict.fromkeys(c.device for c in self.converted)
        engines = ", ".join(d for d in devices if d not in ("cpu", "mlx"))
        if not calls:
            parts[-1] += f" on {engines or ', '.join(devices) or 'no device'}"
            parts.append("no call yet")
        elif engines:
            parts.append(f"{100 * on_device // calls} % of calls on {engines}")
        else:
            parts.append(f"{calls} calls on the CPU's BLAS")
        if calls:
            fallbacks = sum(sum(row["fallback"].values()) for row in live)
            parts.append(f"{fallbacks} fallback{'s' * (fallbacks != 1)}")
        if self.outside is not None:
            parts.append(f"{100 * self.outside:.0f} % of time elsewhere")
        return ", ".join(parts)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Have the report say which share of the time inside is not its layers'.

        Time of layers is that of their tasks, forward and gradients; tasks that run
        beside each other count each. Evaluate inside, as MLX is lazy.

        Example:
            >>> model = nn.Sequential(nn.Linear(64, 64))
            >>> report = ane.convert(model, device="emulated")
            >>> with report.timed():
            ...     mx.eval(model(mx.ones((64, 64))))
            >>> report.outside is not None
            True
        """

        def spent() -> float:
            return sum(float(row["ms"]) for row in self.placement().values()) / 1e3

        start, before = time.perf_counter(), spent()
        yield
        total = time.perf_counter() - start
        self.outside = max(0.0, 1.0 - (spent() - before) / total)

    def rounding(self) -> str | None:
        """Who computes the layers of device "ane", by how the self-test saw it round.

        Returns:
            str, optional: "rounds like the engine", "asked only" or "unknown"; None
            where no layer is on that device.
        """
        if not any(c.device == "ane" for c in self.converted):
            return None
        return _ext.device_info("ane").get("rounding", "unknown")

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        live = self.placement()
        return {
            "lead": self.lead,
            "granularity": self.granularity,
            "why": self.why,
            "hint": self.hint,
            "estimate": self.estimate and asdict(self.estimate),
            "outside": self.outside,
            "converted": [
                {
                    "path": c.path,
                    "kind": c.kind,
                    "shape": list(c.shape),
                    "device": c.device,
                    "frozen": c.frozen,
                    "aliases": list(c.aliases),
                    "decision": c.decision and c.decision.to_dict(),
                    **live[c.path],
                }
                for c in self.converted
            ],
            "skipped": [
                {
                    "path": s.path,
                    "kind": s.kind,
                    "shape": list(s.shape),
                    "reason": s.reason,
                }
                for s in self.skipped
            ],
            "attention": [
                {
                    "path": a.path,
                    "kind": a.kind,
                    "device": a.device,
                    "reason": a.reason,
                }
                for a in self.attention or []
            ],
            "rounding": self.rounding(),
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.lead}>"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def __str__(self) -> str:
        live = self.placement()
        lines = [*wrapped(self.lead), *wrapped(self.why), *wrapped(self.hint)]
        lines += self._rounding()
        inside = {
            id(m) for c in self.converted if not c.shape for m in c.layer.modules()
        } - {id(c.layer) for c in self.converted if not c.shape}
        groups = _grouped(
            (c, (_dims(c.shape), c.device, c.kind))
            for c in self.converted
            # A block's program makes the products of its layers.
            if live[c.path]["calls"] or id(c.layer) not in inside
        )
        if groups:
            head = ("layers", "N x K", "device", "calls", "on it", "ms")
            rows = [
                (some([c.path for c in group]), *key[:2], *_totals(group, live))
                for key, group in groups.items()
            ]
            lines += ["", *table([head, *rows])]
        notes = ((c, n) for c in self.converted for n in _notes(c, live[c.path], False))
        for note, layers in _grouped(notes).items():
            lines += wrapped(f"{some([c.path for c in layers])}: {note}")
        lines += self._counted(live)
        lines += self._energy()
        reasons = _grouped((s, s.reason) for s in self.skipped)
        lines += [""] * bool(reasons)
        for reason, skipped in reasons.items():
            lines += wrapped(
                f"not converted: {some([s.path for s in skipped])}: {reason}"
            )
        if self.attention:
            lines.append("")
            for what, modules in _grouped(
                (a, (a.device, a.reason)) for a in self.attention
            ).items():
                device, reason = what
                name = some([a.path for a in modules])
                stays = f"; on MLX: {reason}" * bool(reason)
                lines += wrapped(f"attention on {device}: {name}{stays}")
        elif self.attention is not None:
            lines += ["", f"no module calls MLX's {NAME}"]
        return "\n".join(lines)

    def _counted(self, live: dict[str, dict[str, Any]]) -> list[str]:
        """Calls that were not on the device, by cause and layers."""
        found = []
        for kind, word in (("placed", "placed"), ("fallback", "FALLBACK")):
            causes = [
                (c, cause) for c in self.converted for cause in live[c.path][kind]
            ]
            for cause, layers in _grouped(causes).items():
                count = sum(live[c.path][kind][cause] for c in layers)
                name = some([c.path for c in layers])
                found += wrapped(f"{word} {cause}: {count} calls of {name}")
        return found

    def _rounding(self) -> list[str]:
        rounding = self.rounding()
        return [] if rounding is None else [f"device ane: {rounding}"]

    def _energy(self) -> list[str]:
        """What joules were estimated with."""
        decisions = [c.decision for c in self.converted if c.decision]
        lines: list[str] = []
        for w in dict.fromkeys(d.watts for d in decisions if d.watts):
            lines += wrapped(
                f"energy is estimated: seconds measured here times {w.engine:g} W "
                f"(engine), {w.cpu:g} W (cpu), {w.gpu:g} W (gpu): {w.source}"
            )
        return lines

    def full(self) -> str:
        """The report with a line for each layer, as wide as it is."""
        live = self.placement()
        rows = [
            (
                c.path,
                c.kind,
                _dims(c.shape),
                c.device,
                str(live[c.path]["calls"]),
                str(live[c.path]["on_device"]),
                "; ".join(_notes(c, live[c.path])),
            )
            for c in self.converted
        ]
        lines = [self.lead, *filter(None, (self.why, self.hint)), *self._rounding(), ""]
        if rows:
            head = ("layer", "class", "N x K", "device", "calls", "on it", "notes")
            lines += table([head, *rows])
        lines += self._energy()
        if self.skipped:
            head_skipped = ("not converted", "class", "shape", "why")
            lines += ["", *table([head_skipped, *map(_skipped_row, self.skipped)])]
        if self.attention:
            head_attention = ("attention", "class", "device", "stays on MLX")
            rows_attention = [
                (a.path, a.kind, a.device, a.reason) for a in self.attention
            ]
            lines += ["", *table([head_attention, *rows_attention])]
        elif self.attention is not None:
            lines += ["", f"no module calls MLX's {NAME}"]
        return "\n".join(lines)


def _grouped(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, list[Any]]:
    """Items by their key, in the order of the first of each."""
    groups: dict[Any, list[Any]] = {}
    for item, key in pairs:
        groups.setdefault(key, []).append(item)
    return groups


def _totals(
    layers: list[ConvertedLayer], live: dict[str, dict[str, Any]]
) -> tuple[str, str, str]:
    """Calls, those on the device, and milliseconds of a few layers."""
    total = Counter[str]()
    for c in layers:
        total.update({k: live[c.path][k] for k in ("calls", "on_device", "ms")})
    return str(total["calls"]), str(total["on_device"]), f"{total['ms']:.0f}"


def _live(stats: dict[str, float]) -> dict[str, Any]:
    """Counters of one layer with placements and fallbacks by cause."""

    def by_cause(prefix: str) -> dict[str, int]:
        return {
            name[len(prefix) :]: int(count)
            for name, count in stats.items()
            if name.startswith(prefix) and count
        }

    return {
        "calls": int(stats.get("calls", 0)),
        "on_device": int(stats.get("device_calls", 0)),
        "placed": by_cause("placed_"),
        "fallback": by_cause("fallback_"),
        "bytes": int(stats.get("bytes", 0)),
        "ms": float(stats.get("ms", 0.0)),
    }


def _notes(
    layer: ConvertedLayer, live: dict[str, Any], counts: bool = True
) -> list[str]:
    """What is to be said of a layer, with what its calls were counted as or without."""
    notes = []
    if layer.kind.endswith("Embedding"):
        notes.append("as_linear only")
    if layer.aliases:
        notes.append("shared with " + ", ".join(layer.aliases))
    if layer.device == "mlx":
        notes.append("no longer converted")
    elif layer.layer._precision == "exact":
        notes.append("precision 'exact': fp32 on the BLAS")
    if layer.decision:
        notes.append(str(layer.decision))
    if vars(layer.layer).get("_why"):
        notes.append(f"by its parts: {layer.layer._why}")
    if counts:
        notes += [f"placed {why}: {n}" for why, n in live["placed"].items()]
        notes += [f"FALLBACK {why}: {n}" for why, n in live["fallback"].items()]
    return notes


def _skipped_row(layer: SkippedLayer) -> tuple[str, ...]:
    return (layer.path, layer.kind, _dims(layer.shape), layer.reason)


def _dims(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))

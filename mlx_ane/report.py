"""What convert() did to each layer, and what the layers did since."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlx_ane import _ext
from mlx_ane._attention import NAME, attention_device
from mlx_ane._exchange import Exchanged

if TYPE_CHECKING:
    from mlx_ane.autotune import Decision


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


@dataclass
class AttendingModule:
    """A module that calls MLX's scaled_dot_product_attention, by ours or MLX's."""

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


@dataclass
class ConversionReport:
    """Layers converted and skipped; printed, a table with live placement.

    Counts are those since :func:`mlx_ane.reset_counters`. A copy of a layer made with
    copy.deepcopy is counted with it.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8))
        >>> ane.convert(model, device="cpu").to_dict()["converted"][0]["path"]
        'layers.0'
    """

    converted: list[ConvertedLayer] = field(default_factory=list)
    skipped: list[SkippedLayer] = field(default_factory=list)
    #: Modules that attend, with attention="fused"; None without.
    attention: list[AttendingModule] | None = None

    def placement(self) -> dict[str, dict[str, Any]]:
        """What each converted layer did: calls, where, and why not on the device.

        Returns:
            dict: By path: "calls", and of these "on_device", "placed" and "fallback"
            (counts by cause); "bytes" moved and "ms" spent.
        """
        counts = _ext.layer_counters()
        return {c.path: _live(counts.get(c.name, {})) for c in self.converted}

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

    def __str__(self) -> str:
        live = self.placement()
        rows = [
            (
                c.path,
                c.kind,
                _dims(c.shape),
                c.device,
                str(live[c.path]["calls"]),
                str(live[c.path]["on_device"]),
                _notes(c, live[c.path]),
            )
            for c in self.converted
        ]
        lines = [
            f"{len(self.converted)} layers converted, {len(self.skipped)} not",
            "",
        ]
        if (rounding := self.rounding()) is not None:
            lines[1:1] = [f"device ane: {rounding}"]
        if rows:
            head = ("layer", "class", "N x K", "device", "calls", "on it", "notes")
            lines += table([head, *rows])
        decisions = [c.decision for c in self.converted if c.decision]
        for w in dict.fromkeys(d.watts for d in decisions if d.watts):
            lines += [
                "",
                f"energy is estimated: seconds measured here times {w.engine:g} W "
                f"(engine), {w.cpu:g} W (cpu), {w.gpu:g} W (gpu): {w.source}",
            ]
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


def table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Left-aligned columns under a rule; the first row is the head."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


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


def _notes(layer: ConvertedLayer, live: dict[str, Any]) -> str:
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
    notes += [f"placed {why}: {n}" for why, n in live["placed"].items()]
    notes += [f"FALLBACK {why}: {n}" for why, n in live["fallback"].items()]
    return "; ".join(notes)


def _skipped_row(layer: SkippedLayer) -> tuple[str, ...]:
    return (layer.path, layer.kind, _dims(layer.shape), layer.reason)


def _dims(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))

"""Figures of training, placement and accuracy (pip install 'mlx-ane[plot]')."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mlx_ane.report import ConversionReport
    from mlx_ane.verify import VerificationReport


#: Points up to which a curve is drawn as points with their values.
FEW = 12


def _figure(width: float = 8.0, height: float = 4.5) -> tuple[Figure, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError(
            "[mlx_ane.plot] matplotlib is not installed; run: "
            "pip install 'mlx-ane[plot]'"
        ) from error
    # Figure without pyplot: no window, no global state, any thread.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _on(what: str, devices: Iterable[str]) -> str:
    """A title that names the devices: emulated results must not pass for real."""
    return f"{what}, device {' and '.join(sorted(set(devices))) or 'none'}"


def _save(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def losses(
    curves: Mapping[str, Sequence[float] | Sequence[tuple[int, float]]],
    path: str | Path | None = None,
    *,
    title: str = "Loss",
) -> Figure:
    """Loss curves; few points, as of held-out data, are marked with their values.

    Args:
        curves (Mapping): By label, losses in order, or (step, loss) pairs.
        path (str or Path, optional): File to write, PNG, SVG or PDF.
        title (str): The heading.

    Returns:
        Figure: A matplotlib figure.
    """
    figure, axes = _figure()
    for number, (label, values) in enumerate(curves.items()):
        pairs = [v if isinstance(v, tuple) else (i, v) for i, v in enumerate(values, 1)]
        colour = f"C{number}"
        if len(pairs) > FEW:
            axes.plot(*zip(*pairs, strict=True), label=label, color=colour, lw=1.2)
            continue
        points = list(zip(*pairs, strict=True)) or [(), ()]
        axes.plot(*points, "o", label=label, color=colour, zorder=3)
        for step, loss in pairs:
            axes.annotate(
                f"{loss:.3g}",
                (step, loss),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                color=colour,
                bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 0.8},
            )
    axes.margins(x=0.04, y=0.1)
    axes.set(title=title, xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return _save(figure, path)


def timeline(
    events: str | Path | Sequence[Mapping[str, Any]],
    path: str | Path | None = None,
    *,
    title: str = "Timeline",
) -> Figure:
    """Spans over time: a row per kind of span, a colour per lane, and totals.

    Args:
        events: A file that :class:`mlx_ane.timeline` wrote, or its ``events``.
        path (str or Path, optional): File to write.
        title (str): The heading.

    Returns:
        Figure: A matplotlib figure.
    """
    from mlx_ane.timeline import LANES, OUTSIDE, gaps_of

    read: Sequence[Mapping[str, Any]] = (
        json.loads(Path(events).read_text())["traceEvents"]
        if isinstance(events, (str, Path))
        else events
    )
    spans = [e for e in read if e["ph"] == "X" and e["cat"] in LANES]
    end = max((e["ts"] + e["dur"] for e in read if e["ph"] == "X"), default=0.0)
    rows: dict[tuple[str, str], list[tuple[float, float]]] = {}
    rows["MLX, Python", OUTSIDE] = [
        (start * 1e-3, (stop - start) * 1e-3) for start, stop in gaps_of(spans, end)
    ]
    order = {lane: number for number, lane in enumerate(LANES)}
    for event in sorted(spans, key=lambda e: (order[e["cat"]], e["ts"])):
        times = rows.setdefault((event["cat"], event["name"]), [])
        times.append((event["ts"] * 1e-3, event["dur"] * 1e-3))
    figure, axes = _figure(height=1.3 + 0.32 * len(rows))
    colours = {lane: f"C{number}" for lane, number in order.items()}
    drawn = set()
    for row, ((lane, _), times) in enumerate(rows.items()):
        colour = colours.get(lane, "0.75")
        # The edge keeps spans visible that are shorter than a pixel.
        axes.broken_barh(
            times,
            (row - 0.4, 0.8),
            color=colour,
            linewidth=0.4,
            label=None if lane in drawn else lane,
        )
        drawn.add(lane)
        total = sum(duration for _, duration in times)
        share = f", {total / (end * 1e-3):.0%}" if end else ""
        axes.annotate(
            f"{total:.3g} ms{share}",
            (1.01, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
        )
    axes.set(title=title, xlabel="ms", yticks=range(len(rows)))
    axes.set_yticklabels([kind for _, kind in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, max(end * 1e-3, 1e-3))
    axes.grid(axis="x", alpha=0.3)
    figure.legend(ncols=len(drawn), loc="outside lower center", fontsize=9)
    return _save(figure, path)


def placement(
    report: ConversionReport,
    path: str | Path | None = None,
    *,
    title: str | None = None,
) -> Figure:
    """Calls of each layer: on the device, placed on the CPU, and fallbacks.

    Args:
        report (ConversionReport): What :func:`mlx_ane.convert` returned.
        path (str or Path, optional): File to write.
        title (str, optional): The heading; by default it names the devices.

    Returns:
        Figure: A matplotlib figure.
    """
    live = report.placement()
    parts: dict[str, list[int]] = {
        "on the device": [row["on_device"] for row in live.values()],
        "placed on the CPU": [sum(row["placed"].values()) for row in live.values()],
        "fallback": [sum(row["fallback"].values()) for row in live.values()],
    }
    figure, axes = _figure(height=1.8 + 0.25 * len(live))
    left = [0] * len(live)
    for (label, counts), colour in zip(parts.items(), ("C0", "C7", "C3"), strict=True):
        total = f"{label}: {sum(counts):,} calls"
        axes.barh(list(live), counts, left=left, label=total, color=colour)
        left = [a + b for a, b in zip(left, counts, strict=True)]
    axes.set_ylim(len(live) - 0.5, -0.5)
    axes.set_xlim(0, 1.05 * max([*left, 1]))
    axes.xaxis.get_major_locator().set_params(integer=True)
    title = title or _on("Placement", (c.device for c in report.converted))
    axes.set(title=title, xlabel="calls")
    # Outside: a bar may be as long as the axis.
    figure.legend(ncols=len(parts), loc="outside lower center", fontsize=9)
    return _save(figure, path)


def errors(
    report: VerificationReport,
    path: str | Path | None = None,
    *,
    title: str | None = None,
) -> Figure:
    """Forward and gradient error of each layer, beside the errors that pass.

    Args:
        report (VerificationReport): What :func:`mlx_ane.verify` returned.
        path (str or Path, optional): File to write.
        title (str, optional): The heading; by default it names the devices.

    Returns:
        Figure: A matplotlib figure.
    """
    called = [layer for layer in report.layers if layer.calls]
    rows = range(len(called))
    panels: list[tuple[str, list[tuple[float | None, float | None]]]] = [
        ("forward", [(x.forward_error, x.forward_tolerance) for x in called]),
        (
            "gradient of the weight",
            [(x.gradient_error, x.gradient_tolerance) for x in called],
        ),
    ]
    shown = [panel for panel in panels if any(error for error, _ in panel[1])]
    figure, first = _figure(height=1.8 + 0.25 * len(called))
    first.remove()
    grid = figure.subplots(1, max(len(shown), 1), sharey=True, squeeze=False)[0]
    for axes, (label, pairs) in zip(grid, shown, strict=False):
        for row, (error, tolerance) in enumerate(pairs):
            if error is None or tolerance is None:
                continue  # frozen
            colour = "C0" if error <= tolerance else "C3"
            axes.plot([error], [row], "o", color=colour)
            axes.plot([tolerance] * 2, [row - 0.5, row + 0.5], color="C3", lw=1.2)
        axes.set(title=label, xscale="log", xlabel="‖got - exact‖ / ‖exact‖")
        low, high = axes.get_xlim()
        axes.set_xlim(
            10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
        )
        axes.tick_params(axis="x", which="minor", labelbottom=False)
        axes.grid(alpha=0.3)
    grid[0].set_yticks(list(rows), [layer.path for layer in called])
    grid[0].set_ylim(len(called) - 0.5, -0.5)
    figure.suptitle(title or _on("Relative error", (x.device for x in report.layers)))
    figure.supxlabel("dot: worst call; line: the largest error that passes", size=9)
    return _save(figure, path)


def bench(
    rows: Mapping[str, Mapping[str, float]],
    path: str | Path | None = None,
    *,
    unit: str = "ms",
    title: str = "Benchmark",
    words: Mapping[str, str] | None = None,
) -> Figure:
    """Grouped bars: one group a case, one bar a variant; logarithmic if need be.

    Args:
        rows (Mapping): By case, the value of each variant.
        path (str or Path, optional): File to write.
        unit (str): Of the values, as the axis names it.
        title (str): The heading.
        words (Mapping, optional): What variants are, for the legend.

    Returns:
        Figure: A matplotlib figure.
    """
    variants = list(dict.fromkeys(v for row in rows.values() for v in row))
    bars = sum(map(len, rows.values()))
    words = words or {}
    labels = [
        textwrap.fill(f"{v}: {words[v]}" if v in words else v, 110) for v in variants
    ]
    legend = sum(1 + label.count("\n") for label in labels) if words else 2
    figure, axes = _figure(height=1.6 + 0.2 * (bars + legend) + 0.15 * len(rows))
    palette = _colours(len(variants))
    ticks, at = [], 0.0
    handles: dict[str, Any] = {}
    for row in rows.values():
        ticks.append(at + (len(row) - 1) / 2)
        for variant, value in row.items():
            drawn = axes.barh(
                [at],
                [value],
                0.85,
                color=palette[variants.index(variant)],
            )
            handles.setdefault(variant, drawn)
            axes.bar_label(drawn, [f"{value:.3g}"], padding=2, fontsize=8)
            at += 1.0
        at += 0.8
    values = [value for row in rows.values() for value in row.values() if value > 0]
    if values and max(values) > 100 * min(values):
        axes.set_xscale("log")  # else the small bars of other cases vanish
        axes.set_xlim(0.5 * min(values), 3.0 * max(values))
    elif values:
        axes.set_xlim(0, 1.15 * max(values))
    figure.suptitle(title, fontsize=10)
    axes.set(xlabel=unit, yticks=ticks)
    axes.set_yticklabels(list(rows))
    axes.set_ylim(max(at - 1.3, 0.5), -0.7)
    figure.legend(
        [handles[variant] for variant in variants],
        labels,
        ncols=1 if words else 4,
        loc="outside lower center",
        fontsize=8,
    )
    return _save(figure, path)


def _colours(count: int) -> list[Any]:
    """So many colours that can be told apart."""
    from matplotlib import colormaps

    return [
        colormaps["tab10" if count <= 10 else "tab20"](i % 20) for i in range(count)
    ]

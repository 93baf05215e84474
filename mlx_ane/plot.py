"""Figures of training, placement and accuracy (pip install 'mlx-ane[plot]')."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mlx_ane.report import ConversionReport
    from mlx_ane.verify import VerificationReport


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
    """Loss curves.

    Args:
        curves (Mapping): By label, losses in order, or (step, loss) pairs.
        path (str or Path, optional): File to write, PNG, SVG or PDF.
        title (str): The heading.

    Returns:
        Figure: A matplotlib figure.
    """
    figure, axes = _figure()
    for label, values in curves.items():
        pairs = [v if isinstance(v, tuple) else (i, v) for i, v in enumerate(values, 1)]
        axes.plot(*zip(*pairs, strict=True), label=label)
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
    """Spans over time, one row a thread, one colour a kind of span.

    Args:
        events: A file that :class:`mlx_ane.timeline` wrote, or its ``events``.
        path (str or Path, optional): File to write.
        title (str): The heading.

    Returns:
        Figure: A matplotlib figure.
    """
    found: Sequence[Mapping[str, Any]] = (
        json.loads(Path(events).read_text())["traceEvents"]
        if isinstance(events, (str, Path))
        else events
    )
    figure, axes = _figure(height=3.5)
    threads = sorted({event["tid"] for event in found})
    for i, kind in enumerate(sorted({event["name"] for event in found})):
        for row, thread in enumerate(threads):
            spans = [
                (event["ts"] * 1e-3, event["dur"] * 1e-3)
                for event in found
                if event["tid"] == thread and event["name"] == kind
            ]
            label = kind if row == 0 else None
            axes.broken_barh(spans, (row - 0.4, 0.8), color=f"C{i}", label=label)
    axes.set(title=title, xlabel="ms", yticks=range(len(threads)))
    axes.set_yticklabels([f"thread {thread}" for thread in threads])
    if threads:
        axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.2))
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
    figure, axes = _figure(height=1.5 + 0.25 * len(live))
    left = [0] * len(live)
    for (label, counts), colour in zip(parts.items(), ("C0", "C7", "C3"), strict=True):
        axes.barh(list(live), counts, left=left, label=label, color=colour)
        left = [a + b for a, b in zip(left, counts, strict=True)]
    axes.invert_yaxis()
    title = title or _on("Placement", (c.device for c in report.converted))
    axes.set(title=title, xlabel="calls")
    axes.legend()
    return _save(figure, path)


def errors(
    report: VerificationReport,
    path: str | Path | None = None,
    *,
    title: str | None = None,
) -> Figure:
    """Forward and gradient error of each layer, on a logarithmic axis.

    Args:
        report (VerificationReport): What :func:`mlx_ane.verify` returned.
        path (str or Path, optional): File to write.
        title (str, optional): The heading; by default it names the devices.

    Returns:
        Figure: A matplotlib figure.
    """
    names = [layer.path for layer in report.layers]
    figure, axes = _figure(height=1.5 + 0.25 * len(names))
    axes.plot([x.forward_error for x in report.layers], names, "o", label="forward")
    gradients = [(x.gradient_error, x.path) for x in report.layers if x.gradient_error]
    if gradients:
        axes.plot(*zip(*gradients, strict=True), "x", label="gradient of the weight")
    axes.invert_yaxis()
    title = title or _on("Relative error", (x.device for x in report.layers))
    axes.set(title=title, xlabel="‖y - exact‖ / ‖exact‖", xscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    return _save(figure, path)


def bench(
    rows: Mapping[str, Mapping[str, float]],
    path: str | Path | None = None,
    *,
    unit: str = "ms",
    title: str = "Benchmark",
) -> Figure:
    """Grouped bars: one group a case, one bar a variant; logarithmic if need be.

    Args:
        rows (Mapping): By case, the value of each variant.
        path (str or Path, optional): File to write.
        unit (str): Of the values.
        title (str): The heading.

    Returns:
        Figure: A matplotlib figure.
    """
    variants = list(dict.fromkeys(v for row in rows.values() for v in row))
    figure, axes = _figure(height=1.5 + 0.22 * len(variants) * len(rows))
    width = 0.8 / max(len(variants), 1)
    for i, variant in enumerate(variants):
        at = [j + (i - (len(variants) - 1) / 2) * width for j in range(len(rows))]
        values = [row.get(variant, 0.0) for row in rows.values()]
        bars = axes.barh(at, values, width, label=variant)
        axes.bar_label(bars, [f"{v:.3g}" if v else "" for v in values], padding=2)
    values = [value for row in rows.values() for value in row.values() if value > 0]
    if values and max(values) > 100 * min(values):
        axes.set_xscale("log")  # else the small bars of other cases vanish
    axes.set(title=title, xlabel=unit, yticks=range(len(rows)))
    axes.set_yticklabels(list(rows))
    axes.margins(x=0.1)
    axes.invert_yaxis()
    axes.legend()
    return _save(figure, path)

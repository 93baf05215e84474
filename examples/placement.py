"""Prints what ran where: layers, calls, placements, fallbacks and the error."""

import mlx.core as mx

import mlx_ane as ane


def show(report: ane.ConversionReport, converted: mx.array, plain: mx.array) -> None:
    """Prints the placement report of a run.

    Args:
        report (ConversionReport): What ane.convert returned.
        converted (array): Output of the converted model.
        plain (array): Output of plain MLX, fp32, for the same input and parameters.
    """
    counts = ane.counters()
    print(f"\nPlacement report\n\n{report}\n")
    print(f"calls on the device      {counts['device_calls']:>12,}")
    print(f"placed on the CPU        {_by_cause(counts, 'placed_')}")
    print(f"fallbacks                {_by_cause(counts, 'fallback_')}")
    print(f"error against fp32       {relative_error(converted, plain):>12.1e}")
    print("                         (relative, whole model)")


def relative_error(a: mx.array, b: mx.array) -> float:
    """Frobenius norm of a - b over that of b."""
    return (mx.linalg.norm((a - b).flatten()) / mx.linalg.norm(b.flatten())).item()


def _by_cause(counts: dict[str, int], prefix: str) -> str:
    causes = {k[len(prefix) :]: n for k, n in counts.items() if k.startswith(prefix)}
    total = f"{sum(causes.values()):>12,}"
    return total + "".join(f"  {cause}: {n:,}" for cause, n in causes.items() if n)

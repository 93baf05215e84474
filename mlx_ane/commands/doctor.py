"""mlx-ane doctor: versions, devices, settings, and one product end to end."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ane import _device, _ext, _settings, optimizers
from mlx_ane._console import to_json
from mlx_ane._versions import BUILT_FOR_MLX, INSTALLED_MLX, __version__
from mlx_ane.ops import linear
from mlx_ane.verify import FORWARD_TOLERANCE, relative_error

HELP = "check this machine: versions, devices, settings, one product end to end"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mlx-ane doctor`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 if a check failed."""
    findings = examine()
    print(to_json(findings) if args.json else _text(findings))
    return 0 if findings["passed"] else 1


def examine() -> dict[str, Any]:
    """Everything that doctor prints, as plain values."""
    checks = {
        device: _check(device)
        for device in FORWARD_TOLERANCE
        if _device.why_unavailable(device) is None
    }
    return {
        "versions": _versions(),
        "blas": {"name": _ext.blas_name(), "threads": _ext.blas_threads()},
        "default_device": _device.default_setting(),
        "devices": {name: _device.device_info(name) for name in FORWARD_TOLERANCE},
        "environment": {
            name: os.environ[name] for name in _settings.VARIABLES if name in os.environ
        },
        "cache": _cache(),
        "checks": checks,
        "passed": all(check["passed"] for check in checks.values()),
    }


def _versions() -> dict[str, str]:
    found = {
        "mlx_ane": __version__,
        "mlx": INSTALLED_MLX,
        "built for mlx": BUILT_FOR_MLX,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    for name in ("mlx-lm", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _cache() -> dict[str, str]:
    folder = _settings.settings.cache_dir
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    return {
        "folder": str(folder),
        "exists": "yes" if folder.is_dir() else "no",
        "writable": "yes" if os.access(nearest, os.W_OK) else "no",
        "staged bytes": str(_ext.cache_bytes()),
    }


def _check(device: str) -> dict[str, Any]:
    """Forward, gradients and one Adam step of a 64 x 96 x 160 product."""
    keys = mx.random.split(mx.random.key(0), 3)
    x = mx.random.normal((64, 160), key=keys[0])  # (S, K)
    w = mx.random.normal((96, 160), key=keys[1]) / 160**0.5  # (N, K)
    dy = mx.random.normal((64, 96), key=keys[2])  # (S, N)
    try:
        y, (dx, dw) = mx.vjp(lambda x, w: linear(x, w, device=device), [x, w], [dy])
        step = optimizers.Adam(learning_rate=0.1).apply_gradients({"w": dw}, {"w": w})
        mx.eval(y, dx, dw, step)
    except (RuntimeError, ValueError) as error:
        return {"passed": False, "error": str(error)}
    x64, w64, dy64, dw64 = (np.asarray(a, np.float64) for a in (x, w, dy, dw))
    m, v = 0.1 * dw64, 0.001 * dw64**2
    errors = {
        "forward": relative_error(y[0], x64 @ w64.T),
        "dx": relative_error(dx, dy64 @ w64),
        "dw": relative_error(dw, dy64.T @ x64),
        "adam": relative_error(step["w"], w64 - 0.1 * m / (np.sqrt(v) + 1e-8)),
    }
    limits = {name: 1e-5 for name in errors} | {"forward": FORWARD_TOLERANCE[device]}
    return {
        "passed": all(error <= limits[name] for name, error in errors.items()),
        "relative errors": errors,
    }


def _text(findings: dict[str, Any]) -> str:
    lines: list[str] = []
    for section in ("versions", "blas", "environment", "cache"):
        lines += [section, *_pairs(findings[section]), ""]
    lines += ["devices", f"  default: {findings['default_device']}"]
    for name, info in findings["devices"].items():
        lines.append(f"  {name}: available {info['available']}")
        lines += [
            f"    {key}: {value}"
            for key, value in info.items()
            if key not in ("device", "available", "mlx", "mlx_ane", "blas")
        ]
    lines += ["", "end to end (relative error against float64)"]
    for name, check in findings["checks"].items():
        found = check.get("error") or ", ".join(
            f"{key} {error:.1e}" for key, error in check["relative errors"].items()
        )
        lines.append(f"  {'PASS' if check['passed'] else 'FAIL'}  {name}: {found}")
    return "\n".join(lines)


def _pairs(values: dict[str, Any]) -> list[str]:
    return [f"  {key}: {value}" for key, value in values.items()] or ["  (none set)"]


if __name__ == "__main__":
    sys.exit(run(argparse.Namespace(json="--json" in sys.argv)))

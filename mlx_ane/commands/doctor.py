"""mlx-ane doctor: versions, devices, settings, self-test, one product end to end."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from dataclasses import asdict
from typing import Any

from mlx_ane import _checkup, _device, _ext, _selftest, _settings
from mlx_ane._checkup import Check
from mlx_ane._console import to_json
from mlx_ane._types import DEVICES
from mlx_ane._versions import BUILT_FOR_MLX, INSTALLED_MLX, __version__
from mlx_ane.verify import FORWARD_TOLERANCE

HELP = "check this machine: versions, devices, settings, one product end to end"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mlx-ane doctor`."""
    parser.add_argument(
        "--device",
        choices=DEVICES,
        help="the device that must work (default: MLX_ANE_DEVICE, else auto)",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="run the self-test of the Neural Engine again",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="bound of each device's checks (default: 60)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e6:
        raise ValueError(text)
    return seconds


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 if the device that is to be used failed."""
    findings = examine(args.device, args.fresh, args.timeout)
    print(to_json(findings) if args.json else _text(findings))
    if findings["passed"]:
        return 0
    print(f"mlx-ane doctor: {findings['failure']}", file=sys.stderr)
    return 1


def examine(
    device: str | None = None, fresh: bool = False, timeout: float = 60.0
) -> dict[str, Any]:
    """Everything that doctor prints, as plain values.

    Each device is checked in a process of its own, so that the caller's settings,
    counters and caches stay as they were.

    Args:
        device (str, optional): The device that must work; the default if None.
        fresh (bool): Run the self-test although a verdict is stored.
        timeout (float): Seconds that each device may take.
    """
    setting, chosen_by = _setting(device)
    self_test, checks = _self_test(fresh)
    auto, why = _device.auto_choice()
    checks.append(Check(auto, "auto", "pass", auto, why))
    devices: dict[str, Any] = {}
    tested = []
    for name in FORWARD_TOLERANCE:
        missing = _device.why_unavailable(name)
        devices[name] = {"available": missing is None}
        if missing is not None:
            status = "fail" if name == setting else "skip"
            detail = f"{missing}; use 'cpu' or 'emulated'"
            checks.append(Check(name, "availability", status, False, detail))
        elif name == "ane" and setting != "ane" and not _right(self_test):
            detail = "not tried, as no self-test passed; --device ane tries it"
            checks.append(Check(name, "product", "skip", None, detail))
        else:
            found, facts = _checkup.examine(name, timeout)
            checks += found
            devices[name] |= _facts(facts)
            tested.append(name)
    # Without a choice of the user, whatever can be tested must pass.
    needed = tested if setting == "auto" else [setting]
    failed = [c for c in checks if c.status == "fail" and c.device in needed]
    return {
        "versions": _versions(),
        "blas": {"name": _ext.blas_name(), "threads": _ext.blas_threads()},
        "environment": {
            name: os.environ[name] for name in _settings.VARIABLES if name in os.environ
        },
        "cache": _cache(),
        "device": {
            "setting": setting,
            "chosen_by": chosen_by,
            "resolved": auto if setting == "auto" else setting,
        },
        "devices": devices,
        "self_test": self_test,
        "checks": [asdict(check) for check in checks],
        "passed": not failed,
        "failure": _sentence(failed[0], setting, chosen_by) if failed else None,
    }


def _setting(device: str | None) -> tuple[str, str]:
    """The device to use as it was set, and by what."""
    if device is not None:
        return device, "--device"
    setting = _device.default_setting()
    if os.environ.get("MLX_ANE_DEVICE") == setting:
        return setting, "MLX_ANE_DEVICE"
    return setting, "default"


def _sentence(check: Check, setting: str, chosen_by: str) -> str:
    """Which device failed and why, with what chose it."""
    detail = " ".join(check.detail.split()).rstrip(".")
    return (
        f"[mlx_ane.doctor] device {check.device!r} failed its check of "
        f"{check.name} ({chosen_by} is {setting!r}): {detail}."
    )


def _self_test(fresh: bool) -> tuple[dict[str, Any] | None, list[Check]]:
    """The verdict, stored or made now, as plain values and as a check."""
    missing = _device.why_unavailable("ane")
    if missing is not None:
        return None, [Check("ane", "self-test", "skip", None, f"not run: {missing}")]
    verdict = None if fresh else _selftest.stored_verdict()
    age = _selftest.verdict_age() if verdict else 0.0
    try:
        verdict = verdict or _selftest.run_in_subprocess()
    except (RuntimeError, OSError) as error:
        return None, [Check("ane", "self-test", "fail", None, str(error))]
    found = asdict(verdict) | {
        "max_contraction": verdict.max_contraction or None,
        "age_seconds": age,
    }
    status = "pass" if verdict.passed else "fail"
    detail = f"{verdict.reason} ({_ago(age)})"
    return found, [Check("ane", "self-test", status, verdict.passed, detail)]


def _right(self_test: dict[str, Any] | None) -> bool:
    return self_test is not None and self_test["passed"]


def _ago(seconds: float) -> str:
    if seconds == 0:
        return "run now"
    age = f"{seconds:.0f} seconds"
    for unit, length in (("minute", 60), ("hour", 3600), ("day", 86400)):
        if (count := int(seconds // length)) > 0:
            age = f"{count} {unit}{'s' * (count > 1)}"
    return f"stored {age} ago; --fresh runs it again"


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {
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
            found[name] = None
    return found


def _cache() -> dict[str, Any]:
    folder = _settings.settings.cache_dir
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    return {
        "folder": str(folder),
        "exists": folder.is_dir(),
        "writable": os.access(nearest, os.W_OK),
    }


def _facts(facts: dict[str, str]) -> dict[str, Any]:
    """device_info's facts in their own types, less what is said elsewhere."""
    elsewhere = {"device", "available", "mlx", "mlx_ane", "blas", "blas_threads"}
    elsewhere |= {"resident_programs", "compiles"}  # of a process that has ended
    return {
        name: _typed(text)
        for name, text in facts.items()
        if name not in elsewhere and not name.startswith("selftest_")
    }


def _typed(text: str) -> bool | int | str | None:
    """yes and no, whole numbers and nothing as such; other words stay text."""
    if text.isdecimal():
        return int(text)
    return {"yes": True, "no": False, "": None}.get(text, text)


# -- text -------------------------------------------------------------------------


def _text(findings: dict[str, Any]) -> str:
    lines: list[str] = []
    for section in ("versions", "blas", "environment", "cache"):
        lines += [section, *_pairs(findings[section]), ""]
    for name, facts in findings["devices"].items():
        lines += [f"device {name}", *_pairs(facts), ""]
    lines.append("checks")
    for check in findings["checks"]:
        value = "" if check["value"] is None else f" {_word(check['value'])}"
        detail = f" ({check['detail']})" if check["detail"] else ""
        mark = check["status"].upper()
        lines.append(f"  {mark}  {check['device']}: {check['name']}{value}{detail}")
    device = findings["device"]
    lines += [
        "",
        f"device {device['resolved']} is used ({device['chosen_by']}: "
        f"{device['setting']}): {'PASS' if findings['passed'] else 'FAIL'}",
    ]
    return "\n".join(lines)


def _pairs(values: dict[str, Any]) -> list[str]:
    return [f"  {key}: {_word(value)}" for key, value in values.items()] or [
        "  (none set)"
    ]


def _word(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.1e}" if isinstance(value, float) else str(value)

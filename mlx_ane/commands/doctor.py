"""mlx-ane doctor: versions, devices, settings, self-test, one product end to end.

`--report` writes what it found as a file to attach to an issue, without names of users
and paths; `tools/read_report.py` reads a folder of them.
"""

from __future__ import annotations

import argparse
import getpass
import importlib.metadata
import os
import platform
import re
import socket
import sys
from dataclasses import asdict
from pathlib import Path
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
    parser.add_argument(
        "--report",
        nargs="?",
        const="mlx-ane-report.json",
        metavar="FILE",
        help="also write a file to attach to an issue (no names of users, no paths)",
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e6:
        raise ValueError(text)
    return seconds


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 if the device that is to be used failed."""
    findings = examine(args.device, args.fresh, args.timeout)
    print(to_json(findings) if args.json else _text(findings))
    if args.report:
        try:
            Path(args.report).write_text(to_json(report(findings)) + "\n")
        except OSError as error:
            raise ValueError(
                f"[mlx_ane.doctor] --report cannot write {args.report!r}: "
                f"{error.strerror}; name another file."
            ) from error
        print(f"wrote {args.report}", file=sys.stderr)
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
    figures: dict[str, float] = {}
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
            figures |= _checkup.figures(facts)
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
        "variants": _variants(self_test),
        "figures": figures,
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
        verdict = verdict or _selftest.run_in_subprocess(fresh)
    except (RuntimeError, OSError) as error:
        return None, [Check("ane", "self-test", "fail", None, str(error))]
    found = asdict(verdict) | {
        "max_contraction": verdict.max_contraction or None,
        "age_seconds": age,
    }
    status = "pass" if verdict.passed else "fail"
    detail = f"{verdict.reason} ({_ago(age)})"
    return found, [Check("ane", "self-test", status, verdict.passed, detail)]


def _variants(self_test: dict[str, Any] | None) -> list[dict[str, Any]]:
    """One row a variant: what came of it, with the system's own words and times."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    keys = ("route", "staging", "layout", "dialect")
    for found in self_test["findings"] if self_test else []:
        row = rows.setdefault(
            tuple(found.get(key, "") for key in keys),
            {key: found.get(key, "") for key in keys}
            | {"outcome": "not tried", "error": None},
        )
        test, passed = found["test"], found["passed"]
        if test == "variant":
            wrong = "wrong" if "relative_error" in found else "failed"
            missing = "missing" if "missing" in found else wrong
            row["outcome"] = "right" if passed else missing
            row |= {
                name: found[name]
                for name in ("relative_error", "unwritten", "facts", "row_alignment")
                if name in found
            }
        elif test == "process" and row["outcome"] == "not tried":
            hung = found["error"].startswith("no answer")
            row["outcome"] = "hung" if hung else "crashed"
        elif test == "fingerprint" and passed:
            row["rounding"] = found["rounding"]
        elif test == "floor" and passed:
            row["floor_seconds"] = found["best_seconds"]
        elif test == "speed" and passed:
            row |= {
                name: found[name]
                for name in ("compile_seconds", "best_seconds", "tflops", "size", "k")
            }
        if not passed and row["error"] is None:
            row["error"] = found.get("error")
    return list(rows.values())


def report(findings: dict[str, Any]) -> dict[str, Any]:
    """What `examine` found, without settings, names of users and hosts, and paths."""
    kept = {k: v for k, v in findings.items() if k not in ("environment", "cache")}
    cleaned: dict[str, Any] = _clean(kept)
    return {"report": 1, **cleaned}


_PATH = re.compile(
    r"(?:file:)?(?<![\w.])(?:~|[A-Za-z]:)?/(?:[^\s/\"',;:()<>]+/)+[^\s/\"',;:()<>]*"
)


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if not isinstance(value, str):
        return value
    text = _PATH.sub("<path>", value)
    for name in _private_names():
        text = re.sub(rf"\b{re.escape(name)}\b", "<name>", text)
    return text


def _private_names() -> set[str]:
    names = {socket.gethostname(), socket.gethostname().split(".")[0]}
    names.add(Path.home().name)
    try:
        names.add(getpass.getuser())
    except (KeyError, OSError):
        pass  # a user without a name
    return {name for name in names if len(name) > 2}


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
    if findings["figures"]:
        lines += ["figures", *_pairs(findings["figures"]), ""]
    if findings["variants"]:
        lines.append("variants of the Neural Engine")
        lines += [_variant_line(row) for row in findings["variants"]]
        lines.append("")
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


def _variant_line(row: dict[str, Any]) -> str:
    staging = f" ({row['staging']})" if row["staging"] else ""
    words = [f"{row['route']}{staging}, {row['layout']}, {row['dialect']}"]
    words += [
        f"{label} {row[name] * scale:.3g}{unit}"
        for name, label, scale, unit in (
            ("relative_error", "error", 1.0, ""),
            ("compile_seconds", "compile", 1.0, " s"),
            ("floor_seconds", "a call", 1e6, " us"),
            ("tflops", "large product", 1.0, " TFLOP/s"),
        )
        if row.get(name) is not None
    ]
    words += [row["rounding"]] if "rounding" in row else []
    words += [f"{name} {text}" for name, text in row.get("facts", {}).items()]
    words += [row["error"]] if row["error"] else []
    return f"  {row['outcome']}: {'; '.join(words)}"


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

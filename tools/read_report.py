"""Turns a folder of `mlx-ane doctor --report` files into the table of docs/apple.md.

    python tools/read_report.py FOLDER [--write]

Prints the table; --write puts it between the marks in docs/apple.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs/apple.md"
BEGIN, END = "<!-- evidence -->", "<!-- end of evidence -->"
HEAD = (
    "| chip | OS build | mlx_ane | engine | variant | error | a call | TFLOP/s "
    "| rounding | variants right |"
)


def row(report: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one report."""
    engine = report["devices"].get("ane", {})
    test = report["self_test"] or {}
    variants = report["variants"]
    right = [v for v in variants if v["outcome"] == "right"]
    best = next(
        (
            v
            for v in right
            if all(v[k] == test[k] for k in ("route", "staging", "layout", "dialect"))
        ),
        {},
    )
    used = report["passed"] and report["device"]["resolved"] == "ane"
    name = str(test.get("reason", "no self-test"))
    if best:
        staging = f" ({best['staging']})" if best["staging"] else ""
        name = f"{best['route']}{staging}, {best['layout']}, {best['dialect']}"

    def number(key: str, form: str, scale: float = 1.0) -> str:
        value = best.get(key)
        return "-" if value is None else format(value * scale, form)

    return (
        str(engine.get("chip") or engine.get("processor") or "unknown"),
        str(engine.get("os_build") or "unknown"),
        str(report["versions"]["mlx_ane"]),
        "right" if used or right else "not usable",
        name,
        number("relative_error", ".1e"),
        number("floor_seconds", ".0f", 1e6) + (" us" if best else ""),
        number("tflops", ".2f"),
        str(best.get("rounding", "-")),
        f"{len(right)} of {len(variants)}",
    )


def table(reports: Iterable[dict[str, Any]]) -> str:
    """The table of all reports, by chip and OS build."""
    rows = sorted(row(report) for report in reports)
    if not rows:
        return "No Mac has reported yet."
    cells = [
        "| " + " | ".join(cell.replace("|", "/") for cell in r) + " |" for r in rows
    ]
    rule = "|" + "---|" * len(rows[0])
    return "\n".join([HEAD, rule, *cells])


def read(folder: Path) -> list[dict[str, Any]]:
    """Every report of a folder; ValueError that lists the files that are none."""
    reports, wrong = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            report = json.loads(path.read_text())
            row(report)
            reports.append(report)
        except (ValueError, KeyError, TypeError, AttributeError):
            wrong.append(path.name)
    if wrong:
        raise ValueError(
            f"got {', '.join(wrong)}, need files of `mlx-ane doctor --report`."
        )
    return reports


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true", help="into docs/apple.md")
    arguments = parser.parse_args()
    try:
        text = table(read(arguments.folder))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(text)
    if arguments.write:
        page = PAGE.read_text()
        before, rest = page.split(BEGIN)
        _, after = rest.split(END)
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

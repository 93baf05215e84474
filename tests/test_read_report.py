"""tools/read_report.py: reports of Macs become the table of docs/apple.md."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from mlx_ane.commands import doctor

TOOL = Path(__file__).parent.parent / "tools/read_report.py"
spec = importlib.util.spec_from_file_location("read_report", TOOL)
assert spec is not None and spec.loader is not None
read_report = importlib.util.module_from_spec(spec)
spec.loader.exec_module(read_report)

WAY = {"route": "client", "staging": "", "layout": "rank3", "dialect": "ios16"}


def found(**changes: Any) -> dict[str, Any]:
    """What doctor finds on a Mac whose engine is right."""
    findings = [
        {"test": "variant", **WAY, "passed": False, "relative_error": 0.5,
         "error": "?"},
        {"test": "process", **WAY, "layout": "natural", "passed": False,
         "error": "no answer within 8 s, its process was ended"},
        {"test": "variant", **WAY, "dialect": "ios18", "passed": True,
         "relative_error": 3e-4, "unwritten": 0, "facts": {"stride of a0_x": "64"}},
        {"test": "fingerprint", **WAY, "dialect": "ios18", "passed": True,
         "rounding": "rounds like the engine"},
        {"test": "floor", **WAY, "dialect": "ios18", "passed": True,
         "best_seconds": 9.5e-5},
        {"test": "speed", **WAY, "dialect": "ios18", "passed": True, "size": 2048,
         "k": 1344, "compile_seconds": 0.3, "best_seconds": 2e-3, "tflops": 5.64},
    ]  # fmt: skip
    test = {**WAY, "dialect": "ios18", "reason": "right", "findings": findings}
    return {
        "versions": {"mlx_ane": "0.1.0"},
        "environment": {"MLX_ANE_CACHE_DIR": "/Users/jane/cache"},
        "cache": {"folder": "/Users/jane/Library/Caches/mlx_ane"},
        "device": {"resolved": "ane"},
        "devices": {"ane": {"chip": "h16g", "os_build": "25E246"}},
        "self_test": test,
        "variants": doctor._variants(test),
        "passed": True,
    } | changes


def test_variants_have_their_outcome_and_the_systems_words() -> None:
    rows = found()["variants"]
    assert [row["outcome"] for row in rows] == ["wrong", "hung", "right"]
    assert rows[1]["error"].startswith("no answer") and rows[0]["error"] == "?"
    right = rows[2]
    assert right["floor_seconds"] == 9.5e-5 and right["tflops"] == 5.64
    assert right["facts"] == {"stride of a0_x": "64"}
    line = doctor._variant_line(right)
    assert line.startswith("  right: client, rank3, ios18; error 0.0003")
    assert "a call 95 us" in line and "rounds like the engine" in line


def test_a_report_has_no_names_and_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_private_names", lambda: {"jane", "janes-mac"})
    words = (
        "dlopen(/System/Library/X.framework/X): no (file:///Users/jane/a b), 1/2 of "
        "janes-mac, error Domain=a.b Code=10"
    )
    text = json.dumps(doctor.report(found(failure=words)))
    assert "jane" not in text and "/Users" not in text and "/System" not in text
    assert "environment" not in text and "Code=10" in text and "1/2 of" in text


def test_the_table(tmp_path: Path) -> None:
    assert read_report.table([]) == "No Mac has reported yet."
    reports = [
        doctor.report(found()),
        doctor.report(
            found(
                devices={"ane": {"chip": "h13g", "os_build": "24A1"}},
                self_test={**WAY, "reason": "none of 2 variants is right"},
                variants=[],
                passed=True,
                device={"resolved": "cpu"},
            )
        ),
    ]
    for place, report in enumerate(reports):
        (tmp_path / f"{place}.json").write_text(json.dumps(report))
    rows = read_report.table(read_report.read(tmp_path)).splitlines()
    assert rows[2].startswith("| h13g | 24A1 | 0.1.0 | not usable | none of 2 variants")
    assert rows[3] == (
        "| h16g | 25E246 | 0.1.0 | right | client, rank3, ios18 | 3.0e-04 | 95 us "
        "| 5.64 | rounds like the engine | 1 of 3 |"
    )
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"got other\.json, need files of"):
        read_report.read(tmp_path)


def test_the_table_goes_between_the_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "apple.md"
    page.write_text(read_report.PAGE.read_text())
    monkeypatch.setattr(read_report, "PAGE", page)
    folder = tmp_path / "reports"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(doctor.report(found())))
    monkeypatch.setattr("sys.argv", ["read_report", str(folder), "--write"])
    assert read_report.main() == 0
    text = page.read_text()
    assert "No Mac has reported yet." not in text and "| h16g | 25E246 |" in text
    assert text.count(read_report.BEGIN) == text.count(read_report.END) == 1

"""What tools/bump_mlx.py and tools/release.py read and write, without a build."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def tool(name: str) -> Any:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def test_bump_finds_the_newest_nanobind_of_an_internals_version() -> None:
    find: Callable[..., str] = tool("bump_mlx").newest_with
    internals = {"2.0": 9, "2.1": 10, "2.2": 10, "3.0": 12, "3.1": 12}
    asked: list[str] = []

    def of(version: str) -> int:
        asked.append(version)
        return internals[version]

    found = {n: find(n, list(internals), of) for n in (9, 10, 12)}
    assert found == {9: "2.0", 10: "2.2", 12: "3.1"}
    for absent in (8, 11, 13):
        with pytest.raises(SystemExit):
            find(absent, list(internals), of)
    assert len(asked) <= 6 * 4  # bisection, and one look at the answer


def test_bump_reads_tags_of_old_and_new_nanobinds() -> None:
    bump = tool("bump_mlx")
    old = b"\0v20_system_libstdcpp_gxx_abi_1xxx_use_cxx11_abi_1\0"
    new = b"\0nanobind_system_libcpp_abi1_a1_v22\0 xv9_system_"
    assert bump.one_number(bump.TAG, old, "old") == 20
    assert bump.one_number(bump.TAG, new, "new") == 22
    with pytest.raises(SystemExit):
        bump.one_number(bump.TAG, old + new, "both")


def test_bump_changes_every_pin() -> None:
    bump = tool("bump_mlx")
    versions = {"mlx": "9.8.7", "nanobind": "6.5.4"}
    for name, patterns in bump.PINS.items():
        text = bump.repin((ROOT / name).read_text(), patterns, versions)
        pins = re.findall(r'(?:"mlx(?:\[cpu\])?==|BUILT_FOR_MLX = ")([^;"]+)', text)
        assert pins and set(pins) == {"9.8.7"}
    project = (ROOT / "pyproject.toml").read_text()
    text = bump.repin(project, bump.PINS["pyproject.toml"], versions)
    assert set(re.findall(r'"nanobind==([^"]+)"', text)) == {"6.5.4"}
    assert re.findall(r'"mlx-lm==([^"]+)"', text) == re.findall(
        r'"mlx-lm==([^"]+)"', project
    )


def test_release_sets_every_version(tmp_path: Path, monkeypatch: Any) -> None:
    release = tool("release")
    for name in [*release.VERSIONS, "CHANGELOG.md"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"))
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n- New.\n")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="need a form such as"):
        release.set_version("9.8")
    for _ in range(2):  # again: its section has the version
        release.set_version("9.8.7")
        for name in release.VERSIONS:
            assert "9.8.7" in (tmp_path / name).read_text()
        assert "\n## 9.8.7 (2" in (tmp_path / "CHANGELOG.md").read_text()
    with pytest.raises(SystemExit, match=r"0 sections Unreleased or 9\.8\.8"):
        release.set_version("9.8.8")


def test_links_of_a_release_are_absolute(tmp_path: Path, monkeypatch: Any) -> None:
    release = tool("release")
    for name in ("pyproject.toml", "README.md"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"))
    monkeypatch.setattr(release, "ROOT", tmp_path)
    for url in ("example.com/a", "https://example.com"):
        with pytest.raises(SystemExit, match="need an address such as"):
            release.set_repository(url)
    release.set_repository("https://example.com/a/b")
    project = (tmp_path / "pyproject.toml").read_text()
    assert '[project.urls]\nRepository = "https://example.com/a/b"\n' in project
    links = re.findall(r"\]\(([^)]+)\)", (tmp_path / "README.md").read_text())
    assert "https://example.com/a/b/blob/main/docs/limits.md" in links
    assert all(link.startswith("https://") for link in links)
    with pytest.raises(SystemExit, match="already"):
        release.set_repository("https://example.com/a/b")

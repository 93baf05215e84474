"""`mlx-ane mil`: summary, check, run, graph, text, each also as JSON."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

from mlx_ane import cli, mil
from mlx_ane.mil import graph, weights

DATA = pathlib.Path(__file__).parent / "data" / "mil"


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    status = cli.main(["mil", *map(str, arguments)])
    return status, capsys.readouterr().out


def call_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    return json.loads(call(capsys, *arguments, "--json")[1])


def test_summary(capsys: pytest.CaptureFixture[str]) -> None:
    status, out = call(capsys, DATA / "attention.mil")
    assert status == 0
    assert out.startswith("main <ios18>: 5 operations, 4 constants; k fp16[1, 4, 32")
    summary = call_json(capsys, DATA / "int8_bank.mil")["functions"]
    assert [f["name"] for f in summary] == ["procedure000", "procedure001"]


def test_text_is_all_that_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    file = DATA / "attention.mil"
    assert cli.main(["mil", str(file), "--text", "ios16", "--check", "h16g"]) == 0
    printed = capsys.readouterr()
    assert mil.parse(printed.out) == mil.parse(file.read_text())
    assert printed.err.startswith("main <ios18>: 5 operations")
    assert "note uniform-surfaces" in printed.err


def test_check_sets_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    status, out = call(capsys, DATA / "matmul_ios16.mil", "--check", "h13")
    assert status == 0 and "error" not in out
    status, out = call(capsys, DATA / "attention.mil", "--check", "h13")
    assert status == 1 and "error dialect (program)" in out
    # Findings that are no errors leave the status alone.
    status, out = call(capsys, DATA / "attention.mil", "--check", "h16g")
    assert status == 0 and "note uniform-surfaces" in out
    report = call_json(
        capsys, DATA / "compiled.mil", "--check", "h16g", "--allow", "disputed"
    )
    rules = {finding["rule"] for finding in report["findings"]}
    assert "unknown-axis" in rules and "concat" not in rules


def test_run_prints_shapes_and_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    outputs = call_json(capsys, DATA / "matmul_ios16.mil", "--run")["outputs"]
    y = outputs["main"]["y"]
    assert y["type"] == "float16[1, 1, 64, 96]" and y["nonfinite"] == 0
    assert -80 < y["min"] < -20 and 20 < y["max"] < 80
    _, out = call(capsys, DATA / "matmul_ios16.mil", "--run", "--inputs", "zeros")
    assert "main: y float16[1, 1, 64, 96]: 0 to 0" in out


def test_run_reads_weight_files(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "model"
    (folder / "weights").mkdir(parents=True)
    shutil.copy(DATA / "conv_ios18.mil", folder / "model.mil")
    with pytest.raises(SystemExit):
        cli.main(["mil"])
    assert cli.main(["mil", str(folder), "--run"]) == 1
    assert "w.bin of @model_path/weights/w.bin is missing" in capsys.readouterr().err
    writer = weights.Writer()
    writer.add(np.full((16, 64, 1, 1), 0.5, np.float16))
    writer.save(folder / "weights" / "w.bin")
    y = call_json(capsys, folder, "--run")["outputs"]["main"]["y"]
    assert y["type"] == "float16[1, 16, 1, 32]" and y["max"] > 0
    moved = call_json(capsys, DATA / "conv_ios18.mil", "--run", "--weights", folder)[
        "outputs"
    ]["main"]["y"]
    assert moved == y


def test_text_converts(capsys: pytest.CaptureFixture[str]) -> None:
    text = call_json(capsys, DATA / "swiglu.mil", "--text", "ios16")["text"]
    assert text.startswith("program(1.0)\n")
    assert mil.parse(text).functions[0].opset == "ios16"
    assert "func main<ios16>" in call(capsys, DATA / "swiglu.mil", "--text", "ios16")[1]


def test_graph_as_dot(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "a.dot"
    assert call_json(capsys, DATA / "compiled.mil", "--graph", path)["graph"]
    text = path.read_text()
    assert text == graph.dot(mil.parse((DATA / "compiled.mil").read_text()))
    assert 'f0_op2 -> f0_op4 [label="values[0]\\nfp16 [1, ?, 4]"];' in text
    assert 'f0_op6 -> f0_out0 [label="fp16 [1, ?, 8]"];' in text
    assert cli.main(["mil", str(DATA / "swiglu.mil"), "--graph", "a.png"]) == 1
    assert "need .dot or .svg" in capsys.readouterr().err


def test_graph_shows_weight_files() -> None:
    for name, label in (("int8_bank", "data"), ("palette", "indices")):
        text = graph.dot(mil.parse((DATA / f"{name}.mil").read_text()))
        assert f'"f0_op0 {label}" -> f0_op0 [label="{label}"];' in text


def test_graph_as_svg_needs_graphviz(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = mil.parse((DATA / "attention.mil").read_text())
    if shutil.which("dot"):
        graph.draw(program, tmp_path / "a.svg")
        assert "<svg" in (tmp_path / "a.svg").read_text()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="program dot is not installed"):
        graph.draw(program, tmp_path / "b.svg")


def test_errors_are_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    broken = tmp_path / "broken.mil"
    broken.write_text("program(1.3) {\n  func main<ios18>(\n}")
    assert cli.main(["mil", str(broken)]) == 1
    assert "line 3, column 1: expected a type, got '}'" in capsys.readouterr().err
    assert cli.main(["mil", str(tmp_path / "missing.mil")]) == 1
    assert "missing.mil" in capsys.readouterr().err
    assert cli.main(["mil", str(DATA / "compiled.mil"), "--run"]) == 1
    assert capsys.readouterr().err

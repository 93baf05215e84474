"""The benchmark: answers are checked before they are compared, and nothing flatters."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mlx_ane import bench, cli
from mlx_ane.bench import inputs
from mlx_ane.bench.cases import Case, Variant
from mlx_ane.bench.experiment import experiment
from mlx_ane.bench.measure import SLOWING, Row, Side, Sides, measure
from mlx_ane.bench.report import WORDS


@pytest.fixture(scope="module")
def sides():
    opened = Sides(threads=1, given={})
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def rows(sides):
    found = []
    for part in bench.PARTS:
        found += measure(bench.cases(part, ("mlx",), small=True), sides, rounds=2)
    return found


def test_every_variant_of_every_part_is_right(rows):
    assert {row.part for row in rows} == set(bench.PARTS)
    wrong = [(row.case, row.variant, row.error) for row in rows if not row.correct]
    assert wrong == []
    assert [row.problem for row in rows if row.problem] == []


def test_ratios_are_those_of_a_round(rows):
    by_case = {}
    for row in rows:
        by_case.setdefault(row.case, []).append(row)
    for case in by_case.values():
        # The baseline against itself is 1 in every round.
        assert any(set(row.ratios) == {1.0} for row in case)
        assert all(len(row.ratios) == len(row.seconds) == 2 for row in case)


def test_step_tells_its_spans_apart(rows):
    step = next(row for row in rows if row.variant == "cpu, fused ops")
    for kind in ("adam", "gemm_dx", "gemm_dw", "gemm_forward", "attention"):
        assert step.spans[f"{kind} seconds"] > 0.0
    # Forward, dx and dW multiply the same numbers of elements.
    assert step.spans["gemm_dw flops"] == step.spans["gemm_forward flops"]


def test_the_embedding_is_a_kind_of_its_own(rows, sides):
    """The lookup and its gradient are timed on every side, and before and after."""
    steps = {row.variant: row.spans for row in rows if row.part == "step"}
    assert set(steps) >= {"cpu, fused ops", "mlx"}
    assert all(spans["embedding seconds"] > 0.0 for spans in steps.values())
    found = experiment(sides, rounds=2, small=True, device="cpu")
    assert found["correct"]
    figures = {name: times for name, *times in found["rows"]}
    assert set(figures) == {"average ms/step", "best ms/step", "embedding ms"}
    for side in (0, 1):
        average, best, embedding = (times[side] for times in figures.values())
        assert 0.0 < best <= average and embedding > 0.0
    text = bench.Report(experiment=found).text()
    assert "plain MLX on the CPU before, mlx_ane with its forward on cpu after" in text


def test_losses_that_differ_are_told(sides, monkeypatch):
    right = np.load
    monkeypatch.setattr(np, "load", lambda path: right(path) * (1 + ("ours" in path)))
    assert not experiment(sides, rounds=1, small=True, device="cpu")["correct"]


def test_tokens_that_repeat_are_summed():
    spec = {"vocabulary": 64, "dim": 8, "S": 32}
    x = inputs.embedding_inputs(spec)
    assert len(set(x["tokens"].tolist())) < 32
    once = np.zeros_like(x["w"])
    once[x["tokens"]] = x["dy"]  # the last of those that repeat, not their sum
    want = inputs.embedding_expected(spec)
    got = inputs.embedding_sample(spec, x["w"][x["tokens"]], once)
    assert np.abs(got - want).max() > 0.01


def test_numpys_embedding_is_right(sides):
    cases = bench.cases("embedding", ("numpy", "mlx"), small=True)
    found = list(measure(cases, sides, rounds=1))
    assert [row.variant for row in found] == 2 * ["ANEEmbedding", "mlx", "numpy"]
    assert all(row.correct and row.ratios for row in found)


def test_a_wrong_answer_has_no_speed(sides, monkeypatch):
    case = Case(
        "gemm",
        "wrong",
        {"role": "dx", "S": 8, "K": 16, "N": 24},
        (
            Variant("cblas", "ours", {"how": "cblas"}),
            Variant("mx.vjp", "ours", {"how": "grad"}),
        ),
        "cblas",
        1.0,
        "GFLOP/s",
    )
    right = inputs.gemm_expected

    def expected(spec, rounding):
        return right(spec, rounding) * (1.01 if spec["how"] == "grad" else 1.0)

    monkeypatch.setattr(inputs, "gemm_expected", expected)
    baseline, wrong = measure([case], sides, rounds=2)
    assert baseline.correct and not wrong.correct
    assert wrong.ratios == [] and wrong.ratio is None
    report = bench.Report([baseline, wrong])
    assert "NO (9.9e-03)" in report.text()
    assert "none: wrong answer" in report.text()


def test_an_absent_peer_is_named():
    sides = Sides(threads=1, given={"torch": "/nonexistent/python"})
    try:
        cases = [
            Case(
                "gemm",
                "one",
                {"role": "dx", "S": 8, "K": 16, "N": 24},
                (
                    Variant("cblas", "ours", {"how": "cblas"}),
                    Variant("torch", "torch"),
                ),
                "cblas",
                1.0,
                "GFLOP/s",
            )
        ]
        cblas, torch = measure(cases, sides, rounds=1)
    finally:
        sides.close()
    assert cblas.correct
    assert torch.problem.startswith("absent: ")
    assert set(sides.absent) == {"torch"}


def test_children_run_without_what_slows_a_blas(monkeypatch):
    for name in SLOWING:
        monkeypatch.setenv(name, "Haswell")
    sides = Sides(threads=1, given={})
    try:
        sides.get("ours")
    finally:
        sides.close()
    report = bench.Report(info=sides.info)
    assert "warning: OPENBLAS_CORETYPE=Haswell" in report.text()
    # With the variable, OpenBLAS would report Haswell on any x86 machine.
    with open("/proc/cpuinfo") as cpuinfo:
        if "avx512f" in cpuinfo.read():
            assert "Haswell" not in sides.info["blas"]


def test_command_writes_json_and_markdown(tmp_path, capsys):
    results = tmp_path / "RESULTS.md"
    arguments = ["bench", "dispatch", "--small", "--rounds", "2", "--against", "mlx"]
    assert cli.main([*arguments, "--json", "--markdown", str(results)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in found["rows"][:2]] == ["mx.matmul", "ane.linear"]
    assert all(row["ratio"] > 0.0 for row in found["rows"])
    assert "| compiled chain of 50 | ane.linear | yes" in results.read_text()


def test_command_prints_a_table(capsys):
    arguments = ["bench", "pack", "--small", "--rounds", "2", "--against", ""]
    assert cli.main(arguments) == 0
    assert "(40, 70) hot" in capsys.readouterr().out


def test_unknown_peers_are_refused(capsys):
    assert cli.main(["bench", "adam", "--against", "jax"]) == 1
    assert "--against among torch, mlx, mkl, numpy" in capsys.readouterr().err


def test_bfloat16_rounds_to_nearest_even():
    # 1 + 2^-8 is a tie between 1 and 1 + 2^-7; 1 + 3 * 2^-8 one between odd and even.
    x = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -2.5], np.float32)
    want = [1.0, 1.0, 1 + 2**-6, -2.5]
    assert inputs.round_to(x, "bfloat16").tolist() == want


def test_ctrl_c_keeps_whole_rounds(monkeypatch, capsys):
    ask, runs = Side.ask, 0

    def interrupted(self, **request):
        nonlocal runs
        runs += request["do"] == "run"
        if runs == 14:  # in the third round of six variants
            raise KeyboardInterrupt
        return ask(self, **request)

    monkeypatch.setattr(Side, "ask", interrupted)
    arguments = ["bench", "adam", "--small", "--against", "", "--json"]
    assert cli.main(arguments) == 130
    printed = capsys.readouterr()
    rows = json.loads(printed.out)["rows"]
    assert [len(row["seconds"]) for row in rows] == [2] * 6
    assert all(row["ratio"] > 0.0 for row in rows)
    assert printed.err.endswith("interrupted; what was measured is above\n")


def test_words_of_variants_are_explained():
    row = Row("adam", "2.4 M", "ten passes", 0.0, True, [1.0], [0.5])
    row.rate, row.unit = 1.0, "GB/s"
    text = bench.Report(rows=[row]).text()
    assert "ten passes: Adam as ten vector operations" in text
    assert "ratio: time of the baseline" in text
    named = {
        v.label
        for part in bench.PARTS
        for c in bench.cases(part, ("mlx",), True)
        for v in c.variants
    }
    assert set(WORDS) <= named

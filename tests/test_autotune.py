"""policy="auto": what is measured, kept, chosen and told."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from cases import exact, norm_error
from fine_tuning import data, eager, lora, models, options  # noqa: F401
from processes import run_python
from test_convert import tiny_llama

import mlx_ane as ane
from mlx_ane import _ext, autotune, chips
from mlx_ane.autotune import DEFAULT_ROWS, choose

pytestmark = pytest.mark.skipif(
    "emulated" not in __import__("conftest").DEVICES, reason="measures there"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of the test's own, and short repetitions."""
    monkeypatch.setenv("MLX_ANE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(autotune, "SECONDS", 0.0)
    return tmp_path / "cache" / "measurements" / "emulated.json"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Seconds by device in place of a clock; returns the list of what is asked."""

    def tell(**seconds: float) -> list[str]:
        asked: list[str] = []

        def measure(product, rows, device):
            asked.append(product.key(rows))
            return dict(seconds), None

        monkeypatch.setattr(autotune, "measure", measure)
        return asked

    return tell


def convert(model: nn.Module | None = None, **arguments) -> ane.ConversionReport:
    model = model or nn.Sequential(nn.Linear(64, 96))
    arguments = {"device": "emulated", "policy": "auto", **arguments}
    return ane.convert(model, **arguments)


@pytest.mark.parametrize(
    ("scores", "objective", "best"),
    [
        ({"ane": 1.0, "cpu": 2.0}, "time", "ane"),
        ({"ane": 2.0, "cpu": 1.0}, "time", "cpu"),
        ({"ane": 0.99, "cpu": 1.0}, "time", "cpu"),  # no gain worth a change
        ({"ane": 1.0, "cpu": 2.0, "gpu": 0.5}, "time", "gpu"),
        ({"ane": 1.0, "cpu": 2.0, "gpu": 0.5}, "energy", "gpu"),
        ({"ane": 1.0, "cpu": 2.0, "gpu": 0.5}, "free_gpu", "ane"),
        ({"ane": 3.0, "cpu": 2.0, "gpu": 0.5}, "free_gpu", "cpu"),
        ({"cpu": 2.0}, "time", "cpu"),
    ],
)
def test_choice(scores: dict[str, float], objective: str, best: str) -> None:
    assert choose(scores, objective) == best


@pytest.mark.parametrize(("engine_seconds", "best"), [(1e-3, "emulated"), (9, "cpu")])
def test_layers_go_where_the_measurement_says(told, engine_seconds, best) -> None:
    told(emulated=engine_seconds, cpu=4e-3)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64))
    report = convert(model)
    assert [c.device for c in report.converted] == [best, best]
    decision = report.to_dict()["converted"][0]["decision"]
    assert decision["seconds"] == {"emulated": engine_seconds, "cpu": 4e-3}
    assert decision["rows"] == (DEFAULT_ROWS,)
    assert "cpu 4 ms" in str(report)
    json.dumps(report.to_dict())


def test_real_measurements_place_and_train_under_compile() -> None:
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64))
    x = mx.random.normal((40, 64))
    expected = exact(model(x))
    state = str(mx.random.state)
    report = convert(model, batch_shape=(40, 64))
    assert str(mx.random.state) == state  # the user's random numbers are untouched
    for layer in report.converted:
        assert set(layer.decision.seconds) == {"emulated", "cpu"}
        assert layer.decision.device == choose(layer.decision.seconds, "time")
    ane.reset_counters()
    assert norm_error(mx.compile(model)(x), expected) <= 2e-3
    assert ane.counters()["linear_calls"] == 2


def test_each_product_is_measured_once_and_kept(told, cache: Path) -> None:
    asked = told(emulated=1e-3, cpu=2e-3)
    layers = [nn.Linear(64, 96), nn.Linear(64, 96), nn.Linear(96, 64)]
    convert(nn.Sequential(*layers))
    assert len(asked) == len(set(asked)) == 2
    convert(nn.Sequential(*layers))
    assert len(asked) == 2
    assert len(json.loads(cache.read_text())["seconds"]) == 2
    # Freezing, dtype and quantisation change what a call costs.
    layers[0].freeze()
    half = nn.Linear(64, 96)
    half.set_dtype(mx.float16)
    convert(nn.Sequential(layers[0], half, nn.Linear(64, 96).to_quantized()))
    assert len(asked) == 5


@pytest.mark.parametrize("fact", ["os_build", "chip", "mlx", "mlx_ane", "blas_threads"])
def test_another_machine_or_version_is_measured_anew(
    told, monkeypatch: pytest.MonkeyPatch, fact: str
) -> None:
    asked = told(emulated=1e-3, cpu=2e-3)
    convert()
    here = autotune._machine("emulated")
    assert fact in here
    monkeypatch.setattr(autotune, "_machine", lambda d: {**here, fact: "another"})
    convert()
    convert()
    assert len(asked) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: '{"machine": 3}',
        lambda text: re.sub(r'"cpu": 0[.\d]+', '"cpu": "fast"', text),
        lambda text: re.sub(r'"emulated": [.\d]+', '"emulated": null', text),
        lambda text: "\udcff",
    ],
    ids=["empty", "truncated", "list", "number", "word", "null", "bytes"],
)
def test_a_corrupted_file_is_measured_anew(told, cache: Path, damage) -> None:
    asked = told(emulated=1e-3, cpu=2e-3)
    convert()
    text = damage(cache.read_text())
    cache.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert convert().converted[0].device == "emulated"
    assert len(asked) == 2
    assert json.loads(cache.read_text())["seconds"]


def test_no_room_or_no_right_to_write_costs_one_line(
    told, cache: Path, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(emulated=1e-3, cpu=2e-3)

    def full(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64))
        assert [c.device for c in convert(model).converted] == ["emulated"] * 2
    assert not list(cache.parent.iterdir())  # no draft is left
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "No space left on device" in lines[0]
    assert "MLX_ANE_CACHE_DIR" in lines[0]
    cache.parent.rmdir()
    cache.parent.write_text("a file where the folder should be")
    assert convert().converted[0].device == "emulated"
    assert "File exists" in capfd.readouterr().err


@pytest.mark.parametrize("fallback", ["allow", "error"])
def test_a_device_that_fails_is_not_chosen_and_asked_again(
    fallback: str, cache: Path
) -> None:
    _ext.set_fallback(fallback)
    with ane.emulated.faults("evaluate_false"):
        layer = convert().converted[0]
    assert layer.device == "cpu"
    assert set(layer.decision.seconds) == {"cpu"}
    assert "emulated" in layer.decision.notes[0]
    assert not cache.exists()
    ane.restore_devices()
    assert set(convert().converted[0].decision.seconds) == {"emulated", "cpu"}


def test_energy_is_seconds_times_published_watts(told) -> None:
    watts = chips.CHIPS["h16g"].watts
    told(emulated=1.2e-3, cpu=1e-3, gpu=1e-3)
    report = convert(objective="energy")
    decision = report.converted[0].decision
    assert decision.device == "emulated"  # slower, at fewer watts
    assert decision.joules == pytest.approx(
        {
            "emulated": 1.2e-3 * watts.engine,
            "cpu": 1e-3 * watts.cpu,
            "gpu": 1e-3 * watts.gpu,
        }
    )
    text = str(report)
    assert "energy is estimated" in text
    assert watts.source in text
    told_nothing = convert(objective="time").converted[0].decision
    assert told_nothing.joules == {} and told_nothing.device == "cpu"


def test_what_the_gpu_does_better_stays_on_mlx(told) -> None:
    told(emulated=2e-3, cpu=3e-3, gpu=1e-3)
    model = nn.Sequential(nn.Linear(64, 96))
    report = convert(model)
    assert type(model.layers[0]) is nn.Linear
    assert "gpu 1 ms" in report.skipped[0].reason
    assert convert(model, objective="free_gpu").converted[0].device == "emulated"
    assert not convert(model).converted  # and back
    assert type(model.layers[0]) is nn.Linear


def test_a_gpu_is_timed_where_mlx_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # The CPU stands in for a GPU.
    monkeypatch.setattr(autotune, "has_gpu", lambda: True)
    monkeypatch.setattr(mx, "gpu", mx.cpu)
    model = nn.Sequential(nn.Linear(64, 96).to_quantized(), nn.Linear(96, 64))
    report = convert(model, objective="free_gpu")
    for layer in report.converted:
        seconds = layer.decision.seconds
        assert set(seconds) == {"emulated", "cpu", "gpu"}
        assert min(seconds.values()) > 0
        assert layer.device == choose(seconds, "free_gpu") != "gpu"


def test_rows_come_from_the_batch_shape(told) -> None:
    asked = told(emulated=1e-3, cpu=2e-3)
    model = tiny_llama()
    report = convert(model, batch_shape=[(2, 48), (1, 8), (8, 512)])
    key = "96x64x64 float32 dense trained default"
    assert key in asked
    decision = report.converted[1].decision
    assert decision.rows == (96, 8, 4096)
    # 8 rows take no device; of 4096 rows one tile of 2048 is measured.
    assert any(name.startswith("2048x") for name in asked)
    assert decision.seconds == pytest.approx(
        {"emulated": 1e-3 + 2e-3 + 2e-3, "cpu": 2e-3 + 2e-3 + 4e-3}
    )


def test_few_rows_and_device_cpu_are_not_measured(told) -> None:
    asked = told(emulated=1e-3, cpu=2e-3)
    few = convert(batch_shape=(8, 64)).converted[0].decision
    assert (few.device, few.notes) == ("cpu", ("few rows",))
    cpu = convert(device="cpu").converted[0].decision
    assert (cpu.device, cpu.notes) == ("cpu", ("no other device",))
    assert not asked


def test_a_predicate_may_ask_for_it_by_layer(told) -> None:
    asked = told(emulated=3e-3, cpu=2e-3)
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64))
    report = convert(
        model,
        policy="all",
        class_predicate=lambda p, m: {"policy": "auto"} if p.endswith("0") else True,
    )
    assert [c.device for c in report.converted] == ["cpu", "emulated"]
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "speed"}, "objective is 'speed', need one of 'time'"),
        ({"batch_shape": (0, 64)}, "need positive integers"),
        ({"batch_shape": "ab"}, "need positive integers"),
        ({"batch_shape": (4, 63)}, "neither tokens nor numbers of shape"),
    ],
)
def test_bad_arguments_convert_nothing(arguments, message: str) -> None:
    model = nn.Sequential(nn.Linear(64, 96))
    with pytest.raises(ValueError, match=rf"^\[mlx_ane.convert\].*{message}"):
        convert(model, **arguments)
    assert type(model.layers[0]) is nn.Linear


def test_ctrl_c_while_measuring_converts_nothing(monkeypatch) -> None:
    def interrupted(*_) -> None:
        raise KeyboardInterrupt

    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64))
    with monkeypatch.context() as patch:
        patch.setattr(autotune, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(model)
    assert [type(layer) for layer in model.layers] == [nn.Linear, nn.Linear]
    assert len(convert(model).converted) == 2


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_lora_command(kind: str, models, data, tmp_path, capsys) -> None:  # noqa: F811
    flags = options(kind, models, data, tmp_path)
    flags += ["--device", "emulated", "--policy", "auto", "--objective", "energy"]
    found = lora(capsys, *flags)
    layers = found["placement"]["converted"]
    assert len(layers) > 5
    for layer in layers:
        decision = layer["decision"]
        assert layer["device"] == decision["device"]
        assert decision["device"] == choose(decision["joules"], "energy")
        assert layer["calls"] > 0
    assert found["counters"]["adam_steps"] == len(found["train"])


SHARE = """
import sys
import mlx.nn as nn, mlx_ane as ane
from mlx_ane import autotune
autotune.SECONDS = 0.0
for n in range(int(sys.argv[1]), int(sys.argv[1]) + 12):
    ane.convert(nn.Sequential(nn.Linear(32, n)), device="emulated", policy="auto")
"""


def test_two_processes_share_the_file(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor() as pool:
        jobs = [
            pool.submit(run_python, SHARE, first, MLX_ANE_CACHE_DIR=str(tmp_path))
            for first in ("32", "64")
        ]
        for job in jobs:
            job.result()
    files = list((tmp_path / "measurements").iterdir())
    assert [f.name for f in files] == ["emulated.json"]  # no draft is left
    kept = json.loads(files[0].read_text())["seconds"]
    # The last writer's are there; one of the other may be lost and made again.
    assert len(kept) >= 12
    assert all(set(s) == {"emulated", "cpu"} for s in kept.values())

"""Failing device calls: counted, named, recomputed, or one error and no damage."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from cases import exact, norm_error
from conftest import ENGINES
from mlx.utils import tree_flatten
from processes import run_python

import mlx_ane as ane
from mlx_ane import _ext

pytestmark = pytest.mark.skipif(not ENGINES, reason="injects faults into an engine")
#: Over the doubles of Apple's frameworks the same faults arrive as their errors.
ENGINE = ENGINES[-1] if ENGINES else ""

#: Injected fault, and the cause it is counted under.
CAUSES = {
    "compile_error": "compile_failed",
    "load_fails": "load_failed",
    "out_of_memory": "out_of_memory",
    "evaluate_false": "evaluate_failed",
    "writes_nothing": "wrote_nothing",
    "nan": "nonfinite",
    "zeros": "wrong_values",
}


#: What the Apple routes try twice; Core ML's compiler is asked once.
TWICE = {"load_fails", "compile_error"}
if os.environ.get("MLX_ANE_ROUTE") == "coreml":
    TWICE = {"load_fails"}


def once(fault: str) -> str:
    """A fault that fails one call."""
    return f"{fault}:count={2 if fault in TWICE and ENGINE == 'ane' else 1}"


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program compiled by an earlier test would not be compiled again."""
    monkeypatch.setenv("MLX_ANE_CACHE_DIR", str(tmp_path))


@contextmanager
def faults(specification: str) -> Iterator[None]:
    """Faults of the emulated device while this is open, on a fresh cache."""
    ane.clear_cache()
    ane.restore_devices()
    with ane.emulated.faults(specification):
        yield


def fallbacks() -> dict[str, int]:
    return {
        name.removeprefix("fallback_"): n
        for name, n in ane.counters().items()
        if name.startswith("fallback_") and n
    }


def model_of(*sizes: int) -> nn.Sequential:
    """Linear layers of these sizes."""
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    model = nn.Sequential(*layers)
    ane.convert(model, device=ENGINE)
    mx.eval(model.parameters())
    return model


def counts_of(layer: nn.Module) -> dict[str, float]:
    return _ext.layer_counters()[layer._name]


@pytest.mark.parametrize("fault", CAUSES)
def test_a_failed_call_is_recomputed_and_counted(fault: str) -> None:
    _ext.set_fallback("allow")
    model = model_of(64, 96)
    layer, x = model.layers[0], mx.random.normal((40, 64))
    expected = exact(x) @ exact(layer.weight).T + exact(layer.bias)
    with faults(once(fault)):
        assert norm_error(model(x), expected) <= 1e-5  # the BLAS is exact
        assert fallbacks() == {CAUSES[fault]: 1}
        live = counts_of(layer)
        assert live["calls"] == 1
        assert live[f"fallback_{CAUSES[fault]}"] == 1
        # Backs off for a call, then the layer is on the device again.
        mx.eval(model(x))
        assert ane.counters()["placed_back_off"] == 1
        assert norm_error(model(x), expected) > 1e-5
        assert counts_of(layer)["calls"] == 3
        assert fallbacks() == {CAUSES[fault]: 1}


def test_wrong_values_are_found_by_the_spot_check() -> None:
    _ext.set_fallback("allow")
    model, x = model_of(64, 96), mx.random.normal((40, 64))
    expected = exact(model(x))
    _ext.set_spot_check(1)
    try:
        with faults("wrong_values:count=1"):
            assert norm_error(model(x), expected) <= 2e-3
            assert fallbacks() == {"wrong_values": 1}
    finally:
        _ext.set_spot_check(0)


@pytest.mark.parametrize("fault", CAUSES)
def test_fallback_error_names_layer_and_cause(fault: str) -> None:
    model, x = model_of(64, 96), mx.random.normal((40, 64))
    with faults(once(fault)):
        with pytest.raises(RuntimeError) as caught:
            mx.eval(model(x))
        text = str(caught.value)
        assert f"{model.layers[0]._name} on device {ENGINE}" in text
        assert CAUSES[fault] in text
        assert "MLX_ANE_FALLBACK" in text
        assert "\n" not in text
        mx.eval(model(x))  # the stream still works


def snapshot(model: nn.Module, optimizer) -> dict[str, np.ndarray]:
    """Copies of parameters and optimizer state, by path."""
    mx.eval(model.parameters(), optimizer.state)
    state = {k: v for k, v in optimizer.state.items() if k not in ("step",)}
    return {
        path: np.array(array)
        for path, array in tree_flatten([model.parameters(), state])
    }


@pytest.mark.parametrize("fault", ["evaluate_false", "nan", "writes_nothing"])
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("checkpoint", [False, True], ids=["forward", "recomputation"])
@pytest.mark.parametrize("layer", [1, 2])
def test_a_failed_step_changes_nothing(
    fault: str, compiled: bool, checkpoint: bool, layer: int
) -> None:
    model = model_of(64, 96, 128, 64)
    optimizer = ane.optimizers.AdamW(1e-2)
    optimizer.init(model.trainable_parameters())
    x = mx.random.normal((40, 64))
    forward = model.__call__
    if checkpoint:
        forward = nn.utils.checkpoint(model)

    def step(x: mx.array) -> mx.array:
        loss, gradients = nn.value_and_grad(
            model, lambda x: mx.mean(mx.square(forward(x)))
        )(x)
        optimizer.update(model, gradients)
        return loss

    if compiled:
        state = [model.state, optimizer.state]
        step = mx.compile(step, inputs=state, outputs=state)
    mx.eval(step(x), model.parameters(), optimizer.state)
    before = snapshot(model, optimizer)
    shape = {1: "a1_w=1x1x96x64", 2: "a1_w=1x1x128x96"}[layer]  # (N, K)
    # The forward call of this layer, or the one when it is computed again.
    call = 2 if checkpoint else 1
    with faults(f"{fault}:program={shape},call={call}"):
        with pytest.raises(RuntimeError, match=rf"layers\.{layer - 1} on device"):
            mx.eval(step(x), model.parameters(), optimizer.state)
    after = snapshot(model, optimizer)
    assert before.keys() == after.keys()
    for path in before:
        assert np.array_equal(before[path], after[path]), path
    assert ane.counters()["adam_skipped"] >= 1
    mx.eval(step(x), model.parameters(), optimizer.state)
    trained = snapshot(model, optimizer)
    assert all(np.isfinite(value).all() for value in trained.values())
    assert not np.array_equal(before["0.layers.0.weight"], trained["0.layers.0.weight"])


def test_the_step_after_a_failure_is_the_step_without_it() -> None:
    def train(fail: bool) -> mx.array:
        mx.random.seed(0)
        model = model_of(64, 96, 64)
        optimizer = ane.optimizers.AdamW(1e-2, bias_correction=True)
        step = nn.value_and_grad(model, lambda x: mx.mean(mx.square(model(x))))
        x = mx.random.normal((40, 64))
        for number in range(4):
            if fail and number == 2:
                saved = optimizer.step
                with faults("evaluate_false:count=1"), pytest.raises(RuntimeError):
                    loss, gradients = step(x)
                    optimizer.update(model, gradients)
                    mx.eval(loss, model.parameters(), optimizer.state)
                optimizer.state["step"] = saved
            loss, gradients = step(x)
            optimizer.update(model, gradients)
            mx.eval(loss, model.parameters(), optimizer.state)
        return model.layers[0].weight

    assert mx.array_equal(train(False), train(True))


@pytest.mark.parametrize("converted", [True, False])
def test_a_delivered_failure_stops_no_step_of_another_graph(converted: bool) -> None:
    x = mx.random.normal((40, 64))
    with faults("evaluate_false:count=1"), pytest.raises(RuntimeError):
        mx.eval(model_of(64, 96)(x))
    model = nn.Sequential(nn.Linear(64, 64))
    if converted:
        ane.convert(model, device="cpu")
    optimizer = ane.optimizers.AdamW(1e-2)
    step = nn.value_and_grad(model, lambda x: mx.mean(mx.square(model(x))))
    losses = []
    for _ in range(3):
        loss, gradients = step(x)
        optimizer.update(model, gradients)
        mx.eval(loss, model.parameters(), optimizer.state)
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]
    assert ane.counters()["adam_skipped"] == 0


def test_repeated_failures_take_the_device_out() -> None:
    _ext.set_fallback("allow")
    models = [model_of(64, 64 + 8 * i) for i in range(10)]
    x = mx.random.normal((40, 64))
    with faults("evaluate_false"):
        for model in models:
            mx.eval(model(x))
    assert "8 calls failed in a row" in _ext.disabled(ENGINE)
    assert fallbacks() == {"evaluate_failed": 8}
    assert ane.counters()["placed_device_out"] == 2
    ane.clear_cache()  # which is about caches alone
    assert "8 calls failed in a row" in _ext.disabled(ENGINE)
    assert ane.counters()["placed_device_out"] == 2
    ane.restore_devices()
    assert _ext.disabled(ENGINE) is None
    ane.reset_counters()
    mx.eval(models[0](x))


def test_words_of_the_fallback_are_checked() -> None:
    for word in ("never", None, "Error", mx.array(1)):
        with pytest.raises(
            ValueError, match=r"set_fallback\] fallback is .* 'allow'\."
        ):
            ane.set_fallback(word)


def test_warn_says_each_cause_once(capfd) -> None:
    ane.set_fallback("warn")
    model = model_of(64, 96)
    x = mx.random.normal((40, 64))
    with faults("evaluate_false:count=3"):
        for _ in range(12):
            mx.eval(model(x))
    lines = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert len(lines) == 1
    assert f"{model.layers[0]._name} on device {ENGINE}: evaluate" in lines[0]
    assert fallbacks() == {"evaluate_failed": 3}


def test_training_under_faults_ends_with_the_same_losses() -> None:
    def train(specification: str) -> list[float]:
        mx.random.seed(0)
        model = model_of(64, 96, 64)
        optimizer = ane.optimizers.AdamW(1e-4)
        step = nn.value_and_grad(model, lambda x: mx.mean(mx.square(model(x) - x)))
        losses = []
        with faults(specification):
            for number in range(60):
                x = mx.random.normal((40, 64), key=mx.random.key(number))
                loss, gradients = step(x)
                optimizer.update(model, gradients)
                mx.eval(loss, model.parameters(), optimizer.state)
                losses.append(loss.item())
        return losses

    clean = train("")
    _ext.set_fallback("allow")
    ane.reset_counters()
    faulty = train(
        "evaluate_false:rate=0.05,seed=1;nan:rate=0.05,seed=2;"
        "writes_nothing:rate=0.05,seed=3;zeros:rate=0.05,seed=4"
    )
    assert faulty == pytest.approx(clean, rel=1e-3)
    rows = [row for name, row in _ext.layer_counters().items() if "layers" in name]
    failed = [n for row in rows for k, n in row.items() if k.startswith("fallback_")]
    assert [row["calls"] for row in rows] == [60, 60]
    assert sum(fallbacks().values()) == sum(failed) >= 5


HANG = """
import time, sys
import mlx.core as mx, mlx_ane as ane
from mlx_ane import _ext
_ext.set_fallback(sys.argv[1])
_ext.emulated.set_evaluate_bound(300)  # milliseconds
x, w = mx.ones((40, 64)), mx.ones((96, 64))
mx.eval(ane.linear(x, w, device="emulated"))
with ane.emulated.faults("hang:count=1"):
    start = time.monotonic()
    try:
        y = ane.linear(x, w, device="emulated")
        mx.eval(y)
        print("value", mx.array_equal(y, mx.full((40, 96), 64.0)).item())
    except RuntimeError as error:
        print("error", error)
    print("out", _ext.disabled("emulated"))
    mx.eval(ane.linear(x, w, device="emulated"))
    print("placed", ane.counters()["placed_device_out"])
    print("abandoned", _ext.abandoned_calls())
"""


@pytest.mark.skipif(ENGINE != "emulated", reason="the bound is set there alone")
@pytest.mark.parametrize("fallback", ["allow", "error"])
def test_a_hang_costs_the_device_not_the_process(fallback: str) -> None:
    done = run_python(HANG, fallback)  # must end although a worker hangs
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    if fallback == "allow":
        assert lines["value"] == "True"
    else:
        assert "hang" in lines["error"]
    assert "hung" in lines["out"]
    assert lines["placed"] == "1"
    assert lines["abandoned"] == "1"


@pytest.mark.parametrize("stream", ["None", "mx.new_stream(mx.cpu)"])
def test_exit_with_work_in_flight(stream: str) -> None:
    run_python(
        f"""
        import sys
        import mlx.core as mx, mlx_ane as ane
        stream = {stream}
        x, w = mx.ones((2048, 512)), mx.ones((512, 512))
        for _ in range(20):
            x = ane.linear(x, w, device=sys.argv[1], stream=stream)
        mx.async_eval(x)
        """,
        ENGINE,
    )


def test_interrupt_during_eval() -> None:
    done = run_python(
        """
        import _thread, signal, sys, threading
        import mlx.core as mx, mlx_ane as ane
        # A job in the background inherits that SIGINT is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        x, w = mx.ones((2048, 512)), mx.ones((512, 512)) / 512
        for _ in range(20):
            x = ane.linear(x, w, device=sys.argv[1])
        threading.Timer(0.05, _thread.interrupt_main).start()
        try:
            mx.eval(x)
            import time; time.sleep(5)
        except KeyboardInterrupt:
            print("interrupted", mx.allclose(x, mx.ones((2048, 512))).item())
        """,
        ENGINE,
    )
    assert done.stdout.split() == ["interrupted", "True"]


def test_export_function_is_refused_in_one_sentence(tmp_path) -> None:
    layer = ane.nn.ANELinear(8, 4, device=ENGINE)
    with pytest.raises((ValueError, RuntimeError), match="ANELinear") as caught:
        mx.export_function(str(tmp_path / "f.mlxfn"), layer, mx.ones((2, 8)))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(ENGINE != "emulated", reason="counts surfaces there")
def test_no_memory_to_stage_a_weight() -> None:
    _ext.set_fallback("allow")
    model, x = model_of(64, 96), mx.random.normal((40, 64))
    layer = model.layers[0]
    layer.freeze()
    expected = exact(x) @ exact(layer.weight).T + exact(layer.bias)
    with faults("out_of_memory:call=4"):  # three surfaces are the program's
        assert norm_error(model(x), expected) <= 1e-5
        assert fallbacks() == {"out_of_memory": 1}
        mx.eval(model(x))  # the pause
        for _ in range(3):
            assert norm_error(model(x), expected) <= 2e-3
    counts = ane.counters()
    assert (counts["device_calls"], counts["placed_back_off"]) == (3, 1)
    # The entry given up by the failed call was filled by the next, once.
    assert counts["weights_staged_bytes"] == 2 * (64 * 96 * 2)
    assert fallbacks() == {"out_of_memory": 1}


def test_the_first_call_after_a_sleep_fails_once() -> None:
    _ext.set_fallback("allow")
    model, x = model_of(64, 96), mx.random.normal((40, 64))
    expected = exact(model(x))
    with faults("evaluate_false:after=3,count=1"):
        for _ in range(8):
            assert norm_error(model(x), expected) <= 2e-3
    live = counts_of(model.layers[0])
    assert live["calls"] == 9
    assert (live["device_calls"], live["placed_back_off"]) == (7, 1)
    assert fallbacks() == {"evaluate_failed": 1}


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
/* The wall clock jumps by up to a day, either way, at every look. */
int clock_gettime(clockid_t id, struct timespec* t) {
  static int (*real)(clockid_t, struct timespec*);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(id, t);
  if (id == CLOCK_REALTIME) t->tv_sec += rand() % 172800 - 86400;
  return result;
}
"""

JUMPS = """
import sys, time
import mlx.core as mx, mlx_ane as ane
from mlx_ane import _ext
looks = [time.time() for _ in range(50)]
print("jumps", max(looks) - min(looks) > 3600)
_ext.set_fallback("allow")
_ext.emulated.set_evaluate_bound(2000)  # milliseconds
x, w = mx.ones((40, 64)), mx.ones((96, 64))
def right():
    return mx.array_equal(ane.linear(x, w, device="emulated"), 64 * mx.ones((40, 96)))
with ane.emulated.faults("slow:ms=20"):
    print("right", all(right().item() for _ in range(10)))
print("calls", ane.counters()["device_calls"], _ext.disabled("emulated"))
start = time.monotonic()
with ane.emulated.faults("hang:count=1"):
    print("after a hang", right().item())
print("found", 1.5 < time.monotonic() - start < 20, _ext.disabled("emulated")[:11])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="preloads a library")
def test_a_jump_of_the_clock_is_no_hang_and_hides_none(tmp_path: Path) -> None:
    (tmp_path / "clock.c").write_text(CLOCK)
    shim = tmp_path / "clock.so"
    compile_it = ["cc", "-shared", "-fPIC", "-o", shim, tmp_path / "clock.c", "-ldl"]
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    subprocess.run(compile_it, check=True)
    done = run_python(JUMPS, LD_PRELOAD=str(shim))
    assert done.stdout.splitlines() == [
        "jumps True",
        "right True",
        "calls 10 None",
        "after a hang True",
        "found True a call hung",
    ]

"""Route coreml over the doubles: what runs where, faults, blocks, no private names."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_ane as ane
from mlx_ane import _ext

TOOLS = Path(__file__).resolve().parents[1] / "tools"

PACKAGE = Path(ane.__file__).parent
doubles = pytest.mark.skipif(
    not hasattr(_ext, "apple"), reason="built without the Apple route"
)
public = _ext.ane_routes() == ["coreml"]

# Sizes differ, so that a swapped or transposed operand shows.
PROGRAM = """
import json, sys
import mlx.core as mx, mlx.nn as nn, numpy as np
import mlx_ane as ane

random = np.random.default_rng(0)
x = mx.array(random.normal(size=(40, 72)).astype(np.float32))  # (rows, in)
w = mx.array((random.normal(size=(48, 72)) / 8).astype(np.float32))  # (out, in)
dy = mx.array(random.normal(size=(40, 48)).astype(np.float32))

def error(y, exact):
    y, exact = np.array(y, np.float64), np.array(exact, np.float64)
    return float(np.linalg.norm(y - exact) / np.linalg.norm(exact))

out = {}
y, gradients = mx.vjp(lambda x, w: ane.linear(x, w), [x, w], [dy])
plain, plain_gradients = mx.vjp(lambda x, w: x @ w.T, [x, w], [dy])
out["linear"] = error(y[0], plain[0])
out["dx"], out["dw"] = map(error, gradients, plain_gradients)

def block(x, w):
    return nn.silu(mx.fast.rms_norm(x, None, 1e-5) @ w.T)

compiled = ane.compile(block)
out["block"] = error(compiled(x, w), block(x, w))
y, gradients = mx.vjp(compiled, [x, w], [dy])
out["block_dx"], out["block_dw"] = map(
    error, gradients, mx.vjp(block, [x, w], [dy])[1]
)
out["counters"] = {k: n for k, n in ane.counters().items() if n}
out["info"] = ane.device_info("ane")
print(json.dumps(out))
"""
ERRORS = ("linear", "dx", "dw", "block", "block_dx", "block_dw")
#: Of fp16 and of the engine's tables of silu and the square root.
TOLERANCE = 6e-3


def private_names(path: Path) -> list[str]:
    """What tools/public_only.py finds in a file."""
    sys.path.insert(0, str(TOOLS))
    try:
        tool: Any = importlib.import_module("public_only")
    finally:
        sys.path.pop(0)
    names: list[str] = tool.private_names(path)
    return names


def run(program: str = PROGRAM, **environment: str) -> dict[str, Any]:
    """What a process prints in which route coreml is device ane."""
    child = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "MLX_ANE_DEVICE": "ane",
            "MLX_ANE_ROUTE": "coreml",
            "MLX_ANE_FALLBACK": "error",
            "MLX_ANE_EMULATED": "numerics=exact",
            **environment,
        },
        cwd=PACKAGE.parent,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    result: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    result["stderr"] = child.stderr
    return result


@doubles
def test_products_gradients_and_blocks_run_on_the_engine() -> None:
    found = run()
    assert all(found[name] <= TOLERANCE for name in ERRORS), found
    counters, info = found["counters"], found["info"]
    # A linear, and the block's two programs.
    assert counters["device_calls"] == 3
    assert not any(name.startswith(("placed_", "fallback_")) for name in counters)
    assert info["route"] == "coreml"
    assert info["coreml_programs"] == "2 asked only, 1 rounds like the engine"
    assert info["coreml_models"] == "from memory"
    assert "coreml_elsewhere" not in info


@doubles
def test_what_core_ml_has_on_the_cpu_runs_on_the_blas() -> None:
    found = run(DOUBLES_FAULTS="ml_plan_cpu=nil")
    # fp32, so nearer than fp16 can be.
    assert found["linear"] <= 1e-5
    assert all(found[name] <= TOLERANCE for name in ERRORS), found
    counters = found["counters"]
    assert counters["placed_by_coreml"] == 3
    assert "device_calls" not in counters and "evaluations" not in counters
    assert found["info"]["coreml_elsewhere"] == (
        "Core ML would run matmul on MLCPUComputeDevice"
    )
    assert found["stderr"] == ""


@doubles
def test_a_silent_cpu_is_told_from_the_engine() -> None:
    found = run(DOUBLES_FAULTS="ml_cpu=nil")
    assert found["counters"]["placed_by_coreml"] == 1
    assert found["counters"]["device_calls"] == 2  # blocks have no such question
    assert "1 on the CPU" in found["info"]["coreml_programs"]
    assert found["linear"] <= 1e-5


@doubles
@pytest.mark.parametrize(
    "machine",
    ["ml_plan=nil", "ml_backings=nil", "ml_late=nil", "ml_slow=nil", "ml_asset=error"],
)
def test_machines_that_answer_rightly_otherwise(machine: str) -> None:
    found = run(DOUBLES_FAULTS=machine)
    assert all(found[name] <= TOLERANCE for name in ERRORS), found
    assert found["counters"]["device_calls"] == 3
    info = found["info"]
    assert ("coreml_copied_outputs" in info) == (machine == "ml_backings=nil")
    assert ("unknown" in info["coreml_programs"]) == (machine == "ml_plan=nil")
    files = machine == "ml_asset=error"
    assert info["coreml_models"] == ("from files" if files else "from memory")


@doubles
@pytest.mark.parametrize(
    ("machine", "cause"),
    [
        ("ml_anec=nil", "fallback_compile_failed"),
        ("ml_predict=error", "fallback_evaluate_failed"),
    ],
)
def test_machines_that_fail_cost_the_engine_only(machine: str, cause: str) -> None:
    found = run(DOUBLES_FAULTS=machine, MLX_ANE_FALLBACK="warn")
    assert found["linear"] <= 1e-5
    assert all(found[name] <= TOLERANCE for name in ERRORS), found
    assert found["counters"][cause] >= 1
    assert "device_calls" not in found["counters"]
    text = {"ml_anec=nil": "ANECCompile() FAILED"}.get(
        machine, cause[len("fallback_") :]
    )
    assert text in found["stderr"]


@doubles
def test_both_layouts_and_dialects_through_the_self_tests_door() -> None:
    ane.emulated.configure(numerics="exact")
    x = np.random.default_rng(1).normal(size=(64, 96)).astype(np.float16)
    w = np.random.default_rng(2).normal(size=(160, 96)).astype(np.float16)
    for layout in ("natural", "channels_first"):
        for dialect in ("ios18", "ios16"):
            source = _ext.apple.matmul_source(64, 96, 160, layout, dialect)
            operands = [x, w] if layout == "natural" else [x.T, w.T]
            values = [np.ascontiguousarray(a).ravel().view(np.uint16) for a in operands]
            facts = _ext.apple.run(source, [values], 1, route="coreml")
            y = np.frombuffer(facts["outputs"][0], np.float16).reshape(64, 160)
            exact = x.astype(np.float64) @ w.astype(np.float64).T
            assert np.linalg.norm(y - exact) <= 2e-3 * np.linalg.norm(exact)
            assert facts["unwritten"] == 0


def test_routes_are_known_by_name() -> None:
    routes = _ext.ane_routes()
    assert routes[-1] == "coreml"
    if hasattr(_ext, "apple"):
        with pytest.raises(ValueError, match=f"need one of {', '.join(routes)}"):
            _ext.apple.run(("", [], []), [], route="fast")


def test_python_files_name_no_private_api() -> None:
    found = [
        name
        for file in PACKAGE.rglob("*.py*")
        if file.suffix in (".py", ".pyi")
        for name in private_names(file)
    ]
    assert found == []


@doubles
def test_a_public_only_build_has_no_private_name() -> None:
    binary = Path(_ext.__file__)
    found = private_names(binary)
    if public:
        assert found == []
        assert ane.device_info("ane")["route"] == "coreml"
    else:  # what the search must find where the private routes are built in
        words = " ".join(found)
        assert "_ANEInMemoryModel" in words and "e5rt_" in words
        assert "PrivateFrameworks" in words and "evaluateWithQoS" in words

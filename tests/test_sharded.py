"""Tensor parallelism: MLX's sharded layers keep their work, and are named."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from processes import free_port

import mlx_ane as ane

KINDS = ("all-to-sharded", "sharded-to-all")

# A model of two sharded layers and a whole one; prints how far it is from one process.
PROGRAM = """
import sys
import mlx.core as mx
import mlx.nn as nn
import mlx_ane as ane

group = mx.distributed.init(strict=True)
mx.random.seed(0)
whole = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.Linear(64, 8))
x = mx.random.normal((40, 64))

def gradient(model):
    def loss(model, x):
        return mx.square(model(x)).sum()
    return nn.value_and_grad(model, loss)(model, x)[1]["layers"][3]["weight"]

expected = whole(x), gradient(whole)
mx.eval(expected)
first, relu, second, last = whole.layers
model = nn.Sequential(
    nn.layers.distributed.shard_linear(first, "all-to-sharded", group=group),
    relu,
    nn.layers.distributed.shard_linear(second, "sharded-to-all", group=group),
    last,
)
report = ane.convert(model, device=sys.argv[1])
found = model(x), gradient(model)
off = [(mx.abs(a - b).max() / mx.abs(b).max()).item() for a, b in zip(found, expected)]
if group.rank() == 0:
    names = [c.path for c in report.converted]
    print("RESULT", group.size(), names, len(report.skipped), max(off) < 5e-3)
"""


@pytest.mark.parametrize("sharding", KINDS)
@pytest.mark.parametrize("quantized", [False, True])
def test_sharded_layers_are_refused_by_name(sharding: str, quantized: bool) -> None:
    layer = nn.Linear(64, 64)
    if quantized:
        layer = layer.to_quantized(32, 8)
    sharded = nn.layers.distributed.shard_linear(layer, sharding)
    model = nn.Sequential(sharded, nn.Linear(64, 8))
    report = ane.convert(model, device="cpu")
    assert [c.path for c in report.converted] == ["layers.1"]
    (skipped,) = report.skipped
    assert skipped.reason.startswith("tensor parallelism: it holds a part of a weight")
    assert skipped.reason in report.full()
    assert model.layers[0] is sharded


@pytest.mark.parametrize("sharding", KINDS)
def test_sharding_a_converted_layer_gives_mlx_its_work(
    sharding: str, device: str
) -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    layer = copy.deepcopy(model.layers[0])  # stays plain
    ane.convert(model, device=device)
    sharded = nn.layers.distributed.shard_linear(model.layers[0], sharding)
    assert type(sharded).__module__ == "mlx.nn.layers.distributed"
    x = mx.random.normal((40, 64))
    assert mx.allclose(sharded(x), layer(x), rtol=1e-4, atol=1e-5)


def test_two_processes_give_the_result_of_one(tmp_path: Path, device: str) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("mlx.launch")), "-n", "2"),
            *("--starting-port", str(free_port()), "--python", sys.executable),
            *(str(script), device),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    printed = done.stdout + done.stderr
    assert "RESULT 2 ['layers.3'] 2 True" in printed, printed

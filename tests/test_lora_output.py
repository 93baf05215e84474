"""What `mlx-ane lora` writes, in the hands of plain mlx-lm, and the other way round."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from fine_tuning import (  # noqa: F401
    KINDS,
    Plain,
    data,
    eager,
    lora,
    models,
    options,
    plain,
)
from processes import free_port, run_python

from mlx_ane import cli

# Fuses the adapters, generates from the result and scores a text, by mlx-lm alone.
PLAIN_MLX_LM = """
import contextlib, io, json, sys
sys.modules["mlx_ane"] = None
import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm import fuse, load
from mlx_lm.generate import main as generate

def command(main, *arguments):
    sys.argv = ["mlx_lm", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main()
    return printed.getvalue()

def contents(array):
    return bytes(memoryview(array))

def log_probability(model, context, text):
    tokens = list((context + text).encode())
    found = nn.log_softmax(model(mx.array([tokens[:-1]]))[0])  # (L, V)
    at = range(len(context) - 1, len(tokens) - 1)
    return sum(found[i, tokens[i + 1]].item() for i in at)

def evaluate(folder, *texts):
    try:
        from lm_eval.api.instance import Instance
        from mlx_lm.evaluate import MLXLM
    except ImportError:
        return None
    request = Instance("loglikelihood", {}, texts, 0)
    return MLXLM(folder, use_chat_template=False).loglikelihood([request])[0][0]

found = {}
for kind, (base, adapters) in json.loads(sys.argv[1]).items():
    paths = ["--model", base, "--adapter-path", adapters]
    fused, texts = adapters + "-fused", ("import ", "sys")
    prompt = ["--prompt", "def ", "--max-tokens", "8", "--ignore-chat-template"]
    model, _ = load(base, adapter_path=adapters)
    inside = dict(tree_flatten(model.parameters()))
    file = mx.load(adapters + "/adapters.safetensors")
    command(fuse.main, *paths, "--save-path", fused)
    merged, _ = load(fused)
    found[kind] = {
        "equal": [contents(inside[n]) == contents(file[n]) for n in file],
        "adapters": log_probability(model, *texts),
        "fused": log_probability(merged, *texts),
        "evaluate": evaluate(fused, *texts),
        "layers": sorted({type(m).__name__ for m in merged.modules()}),
        "generated": [
            command(generate, *paths, *prompt),
            command(generate, "--model", fused, *prompt),
        ],
    }
print(json.dumps(found))
"""


COMMAND = """
import sys
from mlx_ane.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def found(models, data, tmp_path_factory) -> dict[str, Any]:
    """For each kind of fine-tuning, what plain mlx-lm made of our adapters."""
    places = {}
    for kind in KINDS:
        out = tmp_path_factory.mktemp(kind)
        flags = options(kind, models, data, out)
        assert cli.main(["lora", *flags, "--device", "emulated"]) == 0
        places[kind] = str(models[kind == "qlora"]), str(out)
    printed = run_python(PLAIN_MLX_LM, json.dumps(places), MLX_DISABLE_COMPILE="1")
    return json.loads(printed.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_plain_mlx_lm_loads_fuses_and_generates(kind: str, found) -> None:
    ours = found[kind]
    assert ours["equal"]
    assert all(ours["equal"])
    # Fusing a quantised layer quantises it again.
    limit = 2e-2 if kind == "qlora" else 1e-5
    assert ours["fused"] == pytest.approx(ours["adapters"], rel=limit)
    assert not [name for name in ours["layers"] if "LoRA" in name or "DoRA" in name]
    assert ("QuantizedLinear" in ours["layers"]) == (kind == "qlora")
    assert all("Generation: 8 tokens" in text for text in ours["generated"])


@pytest.mark.parametrize("kind", KINDS)
def test_plain_mlx_lm_evaluates(kind: str, found) -> None:
    if found[kind]["evaluate"] is None:
        pytest.skip("not run: mlx_lm.evaluate needs the package lm_eval")
    expected = pytest.approx(found[kind]["fused"], rel=1e-5)
    assert found[kind]["evaluate"] == expected


def file(folder: Path) -> dict[str, bytes]:
    """Tensors of an adapter file, by name."""
    arrays = mx.load(str(folder / "adapters.safetensors"))
    return {name: bytes(memoryview(a)) for name, a in arrays.items()}


def resumed(kind: str, models, data, out: Path, adapters: Path) -> list[str]:
    """Flags of one step that changes nothing, from the adapters of another run."""
    flags = [*options(kind, models, data, out), "--iters", "1", "--learning-rate", "0"]
    return [*flags, "--resume-adapter-file", str(adapters / "adapters.safetensors")]


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_resume_byte_identical_both_ways(
    kind: str, models, data, plain, tmp_path: Path, capsys
) -> None:
    _, theirs = plain(kind)
    here, back = tmp_path / "here", tmp_path / "back"
    flags = resumed(kind, models, data, here, theirs)
    assert cli.main(["lora", *flags, "--device", "emulated"]) == 0
    assert file(here) == file(theirs)
    Plain(resumed(kind, models, data, back, here))
    assert file(back) == file(theirs)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(
    models, data, tmp_path: Path, capsys
) -> None:
    script = tmp_path / "run.py"
    script.write_text(COMMAND)
    flags = options("lora", models, data, tmp_path / "one")
    one = lora(capsys, *flags, "--device", "emulated")
    flags = options("lora", models, data, tmp_path / "two")
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("mlx.launch")), "-n", "2"),
            *("--starting-port", str(free_port()), "--python", sys.executable),
            *(str(script), "lora", *flags, "--device", "emulated", "--json"),
        ],
        env={**os.environ, "MLX_DISABLE_COMPILE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    # mlx.launch forwards what the ranks print; the result is rank 0's.
    two = json.loads(done.stdout[done.stdout.index('{\n  "train"') :])
    losses, alone = (
        [info["train_loss"] for info in run["train"]] for run in (two, one)
    )
    assert losses == pytest.approx(alone, rel=2e-3)
    assert file(tmp_path / "two").keys() == file(tmp_path / "one").keys()

"""tools/check_encoder.py: its BERT and its verdicts; the check itself if given a model.

A random model stands for no pretrained one: without a model the check is not run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_ane as ane

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "check_encoder.py"
sys.path.insert(0, str(SCRIPT.parent))

import check_encoder  # noqa: E402

CONFIG = {
    "model_type": "bert",
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 60,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random checkpoint with the tensors of transformers' BertModel."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    d, f = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (60, d),
        "embeddings.position_embeddings.weight": (40, d),
        "embeddings.token_type_embeddings.weight": (2, d),
        "embeddings.LayerNorm.weight": (d,),
        "embeddings.LayerNorm.bias": (d,),
        "pooler.dense.weight": (d, d),
        "pooler.dense.bias": (d,),
    }
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        dense = {
            **{f"attention.self.{n}": (d, d) for n in ("query", "key", "value")},
            "attention.output.dense": (d, d),
            "intermediate.dense": (f, d),
            "output.dense": (d, f),
        }
        for name, (out, inner) in dense.items():
            shapes[f"{layer}.{name}.weight"] = (out, inner)
            shapes[f"{layer}.{name}.bias"] = (out,)
        for name in "attention.output", "output":
            for kind in "weight", "bias":
                shapes[f"{layer}.{name}.LayerNorm.{kind}"] = (d,)
    arrays = {n: 0.2 * mx.random.normal(s) for n, s in shapes.items()}
    arrays["embeddings.position_ids"] = mx.arange(40)[None]
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays)
    return tmp_path


def batch() -> tuple[mx.array, mx.array]:
    lengths = mx.array([16, 9, 12, 16])[:, None]
    return mx.random.randint(1, 60, (4, 16)), (mx.arange(16) < lengths).astype(mx.int32)


def test_layer_is_berts(folder: Path) -> None:
    model = check_encoder.load(folder)
    layer, w = model.encoder["layer"][0], dict(tree_flatten(model.parameters()))
    x = mx.random.normal((2, 7, 48))
    got = layer(x, mx.zeros((1, 1, 1, 7)))

    def dense(name: str, x: mx.array) -> mx.array:
        name = f"encoder.layer.0.{name}"
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: mx.array) -> mx.array:
        name = f"encoder.layer.0.{name}.LayerNorm"
        x = (x - x.mean(-1, keepdims=True)) / mx.sqrt(x.var(-1, keepdims=True))
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    q, k, v = (
        mx.stack(mx.split(dense(f"attention.self.{n}", x), 4, axis=-1), 1)
        for n in ("query", "key", "value")
    )
    scores = mx.softmax(q @ k.swapaxes(2, 3) / 12**0.5, axis=-1) @ v  # (B, H, L, 12)
    y = mx.concatenate([scores[:, h] for h in range(4)], axis=-1)
    x = norm("attention.output", dense("attention.output.dense", y) + x)
    y = dense("output.dense", nn.gelu(dense("intermediate.dense", x)))
    np.testing.assert_allclose(got, norm("output", y + x), rtol=1e-4, atol=1e-4)


def test_padding_changes_nothing(folder: Path) -> None:
    model = check_encoder.load(folder)
    tokens, real = batch()
    alone = model(tokens[1:2, :9], real[1:2, :9])
    np.testing.assert_allclose(model(tokens, real)[1:2], alone, rtol=1e-4, atol=1e-5)


def test_converted_encoder_passes(folder: Path, device: str) -> None:
    found = check_encoder.check(check_encoder.load(folder), batch(), device)
    assert found["passed"]
    assert found["layers converted"] == 2 * 6 + 3
    assert (found["device calls"] > 0) == (device != "cpu")


def test_wrong_layer_fails(folder: Path, monkeypatch) -> None:
    real = ane.convert

    def broken(model: nn.Module, **options: str) -> ane.ConversionReport:
        layer = model.encoder["layer"][1].output.dense
        layer.bias = layer.bias + 0.5 * mx.random.normal(layer.bias.shape)
        return real(model, **options)

    monkeypatch.setattr(ane, "convert", broken)
    found = check_encoder.check(check_encoder.load(folder), batch(), "cpu")
    assert not found["passed"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, r"is of type 'gpt2', need 'bert'"),
        ({"num_hidden_layers": 3}, r"encoder\.layer\.2"),
    ],
)
def test_other_checkpoints_are_refused(folder: Path, change, message: str) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(ValueError, match=message):
        check_encoder.load(folder)


def test_without_a_model_it_says_so() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.stdout.startswith("not run: name a pretrained sentence encoder")


def test_pretrained_encoder(device: str) -> None:
    model = os.environ.get("SENTENCE_ENCODER")
    if model is None:
        pytest.skip("not run: set SENTENCE_ENCODER to the folder or hub id of one")
    command = [sys.executable, SCRIPT, model, "--device", device]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

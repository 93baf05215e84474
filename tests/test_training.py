"""Training as users do it: mlx-lm's trainer unchanged, checkpoints of plain MLX."""

from __future__ import annotations

import functools

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.trainer import TrainingArgs, train
from test_convert import LORA, linear_to_lora_layers, tiny_llama

import mlx_ane as ane


class Losses:
    """A callback of mlx-lm's trainer."""

    def __init__(self) -> None:
        self.train: list[float] = []

    def on_train_loss_report(self, info: dict) -> None:
        self.train.append(info["train_loss"])

    def on_val_loss_report(self, info: dict) -> None:
        pass


def fine_tune(tmp_path, device: str | None, kind: str) -> Losses:
    """Twelve steps of mlx-lm's trainer on random tokens."""
    lora = kind == "LoRA with checkpointing"
    mx.random.seed(0)
    np.random.seed(0)
    model = tiny_llama(tied=not lora)
    if lora:
        model.freeze()
        linear_to_lora_layers(model, 2, LORA)
    optimizer = optim.AdamW(1e-4)
    if device is not None:
        ane.convert(model, device=device)
        optimizer = ane.optimizers.AdamW(1e-4)
    rng = np.random.default_rng(0)
    data = [(rng.integers(0, 80, 48).tolist(), 0) for _ in range(16)]
    losses = Losses()
    arguments = TrainingArgs(
        batch_size=2,
        iters=12,
        steps_per_report=1,
        steps_per_save=100,
        grad_checkpoint=lora,
        adapter_file=str(tmp_path / f"{device}.safetensors"),
    )
    block = type(model.layers[0])
    forward = block.__call__
    try:
        train(model, optimizer, data, args=arguments, training_callback=losses)
    finally:
        block.__call__ = forward  # grad_checkpoint patches the class
    return losses


@pytest.fixture(scope="module")
def plain_runs(tmp_path_factory):
    """Losses and file of plain MLX, once for all devices."""

    @functools.cache
    def run(kind: str):
        folder = tmp_path_factory.mktemp("plain")
        return fine_tune(folder, None, kind), folder / "None.safetensors"

    return run


@pytest.mark.parametrize("kind", ["full", "LoRA with checkpointing"])
def test_mlx_lm_trainer(tmp_path, plain_runs, device: str, kind: str) -> None:
    plain, plain_file = plain_runs(kind)
    ane.reset_counters()
    ours = fine_tune(tmp_path, device, kind)
    assert len(ours.train) == 12
    assert ours.train == pytest.approx(plain.train, rel=1e-3)
    counts = ane.counters()
    assert counts["linear_calls"] >= 12 * 15
    if kind != "full":  # of the two low-rank matrices in 14 layers alone
        assert counts["gemm_dw"] == 12 * 14 * 2
    assert counts["adam_donated"] > 5 * counts["adam_allocated"]
    assert not [k for k, n in counts.items() if k.startswith("fallback") and n]
    theirs = mx.load(str(plain_file))
    mine = mx.load(str(tmp_path / f"{device}.safetensors"))
    assert {k: (v.shape, v.dtype) for k, v in mine.items()} == {
        k: (v.shape, v.dtype) for k, v in theirs.items()
    }


@functools.cache
def losses_of_100_steps(device: str | None) -> list[float]:
    """Losses of a small GPT on eight fixed batches; None is plain MLX."""
    mx.random.seed(0)
    model = tiny_llama()
    optimizer = optim.AdamW(1e-4)
    if device is not None:
        ane.convert(model, device=device)
        optimizer = ane.optimizers.AdamW(1e-4)
    tokens = mx.random.randint(0, 80, (8, 2, 33), key=mx.random.key(1))

    def loss(batch: mx.array) -> mx.array:
        logits = model(batch[:, :-1])
        return nn.losses.cross_entropy(logits, batch[:, 1:], reduction="mean")

    step = nn.value_and_grad(model, loss)
    found = []
    for number in range(100):
        value, gradients = step(tokens[number % 8])
        optimizer.update(model, gradients)
        mx.eval(value, model.parameters(), optimizer.state)
        found.append(value.item())
    return found


def test_100_steps_end_within_one_percent_of_plain_mlx(device: str) -> None:
    plain, ours = losses_of_100_steps(None), losses_of_100_steps(device)
    assert plain[-1] < plain[0] - 0.05  # it learns
    limit = 1e-3 if device == "cpu" else 1e-2
    assert np.mean(ours[-8:]) == pytest.approx(np.mean(plain[-8:]), rel=limit)


def test_checkpoints_go_both_ways(tmp_path, device: str) -> None:
    file = str(tmp_path / "model.safetensors")
    converted, plain = tiny_llama(), tiny_llama()
    ane.convert(converted, device=device)
    converted.save_weights(file)
    plain.load_weights(file)
    for (_, a), (_, b) in zip(
        tree_flatten(converted.parameters()),
        tree_flatten(plain.parameters()),
        strict=True,
    ):
        assert mx.array_equal(a, b)
    other = tiny_llama()
    other.save_weights(file)
    converted.load_weights(file)
    tokens = mx.arange(48)[None] % 80
    assert mx.allclose(converted(tokens), other(tokens), rtol=1e-2, atol=1e-2)


def test_wrong_checkpoint_is_refused_and_nothing_changes(tmp_path) -> None:
    model = tiny_llama()
    ane.convert(model, device="cpu")
    before = dict(tree_flatten(model.parameters()))
    file = str(tmp_path / "model.safetensors")
    mx.save_safetensors(file, {**before, "model.norm.weight": mx.ones((3,))})
    with pytest.raises(ValueError, match="Expected shape"):
        model.load_weights(file)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(RuntimeError):
        model.load_weights(str(tmp_path / "cut.safetensors"))
    after = dict(tree_flatten(model.parameters()))
    assert all(before[key] is after[key] for key in before)


def test_fused_lora_is_plain_and_converts_again(device: str) -> None:
    model = tiny_llama(tied=False)
    model.freeze()
    linear_to_lora_layers(model, 2, LORA)
    ane.convert(model, device=device)
    layer = model.model.layers[0].self_attn.q_proj
    layer.lora_b = mx.random.normal(layer.lora_b.shape)
    x = mx.random.normal((40, 64))
    before = layer(x)
    fused = layer.fuse()
    assert type(fused) is nn.Linear
    assert mx.allclose(fused(x), before, rtol=1e-2, atol=1e-2)
    model.model.layers[0].self_attn.q_proj = fused
    report = ane.convert(model, device=device)
    paths = [c.path for c in report.converted]
    assert "model.layers.0.self_attn.q_proj" in paths

"""Checks a pretrained BERT-family sentence encoder, converted, against plain MLX.

    python tools/check_encoder.py sentence-transformers/all-MiniLM-L6-v2
    python tools/check_encoder.py /path/to/model --device emulated

The embeddings must keep a cosine of 0.9999 to those of fp32, the gradients of all
parameters together one of 0.999. The model is a folder or hub id with config.json,
model.safetensors and a tokenizer, as sentence-transformers saves BERT.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

import mlx_ane as ane

FORWARD, GRADIENT = 0.9999, 0.999

SENTENCES = [
    "The cat sat on the mat and watched the rain.",
    "A kitten was resting on a rug while it rained outside.",
    "Interest rates rose by a quarter of a point in March.",
    "The central bank tightened its monetary policy this spring.",
    "How do I reset the password of my account?",
    "I cannot log in any more, what should I do?",
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "def add(a, b): return a + b",
    "Der Zug nach Hamburg fährt heute von Gleis sieben.",
    "She ran a marathon in under three hours.",
    "1, 1, 2, 3, 5, 8, 13, 21 are the first Fibonacci numbers.",
    "Yes.",
]


# Shapes: B sentences, L tokens, D hidden_size, H heads, F intermediate_size. The
# names of the modules are those of the checkpoint.


class Embeddings(nn.Module):
    """Words, positions and the first segment, summed and normalised."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        dim = c["hidden_size"]
        self.word_embeddings = nn.Embedding(c["vocab_size"], dim)
        self.position_embeddings = nn.Embedding(c["max_position_embeddings"], dim)
        self.token_type_embeddings = nn.Embedding(c["type_vocab_size"], dim)
        self.LayerNorm = nn.LayerNorm(dim, c["layer_norm_eps"])

    def __call__(self, tokens: mx.array) -> mx.array:
        positions = self.position_embeddings(mx.arange(tokens.shape[1]))  # (L, D)
        segments = self.token_type_embeddings(mx.zeros_like(tokens))
        return self.LayerNorm(self.word_embeddings(tokens) + positions + segments)


class SelfAttention(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        dim, self.heads = c["hidden_size"], c["num_attention_heads"]
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        # x: (B, L, D), mask: (B, 1, 1, L)
        split = (*x.shape[:2], self.heads, -1)
        q, k, v = (
            f(x).reshape(split).swapaxes(1, 2)  # (B, H, L, D / H)
            for f in (self.query, self.key, self.value)
        )
        y = mx.fast.scaled_dot_product_attention(
            q, k, v, scale=q.shape[-1] ** -0.5, mask=mask
        )
        return y.swapaxes(1, 2).reshape(x.shape)


class Output(nn.Module):
    """A projection back to the residual stream, which is normalised after it."""

    def __init__(self, inputs: int, c: dict[str, Any]) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, c["hidden_size"])
        self.LayerNorm = nn.LayerNorm(c["hidden_size"], c["layer_norm_eps"])

    def __call__(self, y: mx.array, x: mx.array) -> mx.array:
        return self.LayerNorm(self.dense(y) + x)


class Layer(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        dim, inner = c["hidden_size"], c["intermediate_size"]
        self.attention = {"self": SelfAttention(c), "output": Output(dim, c)}
        self.intermediate = {"dense": nn.Linear(dim, inner)}
        self.output = Output(inner, c)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        y = self.attention["self"](x, mask)
        x = self.attention["output"](y, x)
        return self.output(nn.gelu(self.intermediate["dense"](x)), x)


class Encoder(nn.Module):
    """BERT up to its last hidden state, averaged over the tokens of a sentence."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        layers = range(config["num_hidden_layers"])
        self.encoder = {"layer": [Layer(config) for _ in layers]}

    def __call__(self, tokens: mx.array, real: mx.array) -> mx.array:
        """Unit vectors (B, D) of tokens (B, L); real (B, L) is 0 on padding."""
        x = self.embeddings(tokens)
        mask = mx.where(real, 0.0, -1e9)[:, None, None]  # (B, 1, 1, L)
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        weights = real[..., None]  # (B, L, 1)
        mean = (x * weights).sum(axis=1) / weights.sum(axis=1)
        return mean / mx.linalg.norm(mean, axis=-1, keepdims=True)


def load(folder: Path) -> Encoder:
    """The encoder of a checkpoint, in fp32.

    Raises:
        ValueError: If it is no BERT or lacks tensors.
    """
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "bert":
        raise ValueError(
            f"[check_encoder] {folder} is of type {config.get('model_type')!r}, need "
            "'bert'; name a BERT-family sentence encoder."
        )
    model = Encoder(config)
    saved = mx.load(str(folder / "model.safetensors"))
    arrays = {name.removeprefix("bert."): a for name, a in saved.items()}
    unused = {n for n in arrays if n.startswith("pooler.") or "position_ids" in n}
    model.load_weights([(n, a) for n, a in arrays.items() if n not in unused])
    model.set_dtype(mx.float32)
    return model


def tokenize(folder: Path, sentences: Sequence[str]) -> tuple[mx.array, mx.array]:
    """Tokens (B, L) and which of them are no padding (B, L)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(list(sentences), padding=True, return_tensors="np")
    return mx.array(batch["input_ids"]), mx.array(batch["attention_mask"])


def run(model: Encoder, *batch: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
    """Embeddings, and gradients of a contrastive loss over pairs of neighbours."""

    def loss(*batch: mx.array) -> mx.array:
        found = model(*batch)
        scores = 20.0 * found @ found.T - 1e9 * mx.eye(len(found))  # (B, B)
        partner = mx.arange(len(found)) ^ 1
        return nn.losses.cross_entropy(scores, partner, reduction="mean")

    _, gradients = nn.value_and_grad(model, loss)(*batch)
    flat = dict(tree_flatten(gradients))
    found = model(*batch)
    mx.eval(found, flat)
    return found, flat


def cosine(a: mx.array, b: mx.array) -> float:
    a, b = a.flatten(), b.flatten()
    return float(((a @ b) / (mx.linalg.norm(a) * mx.linalg.norm(b))).item())


def check(model: Encoder, batch: tuple[mx.array, mx.array], device: str) -> Any:
    """Converts the model and compares; returns the figures."""
    embeddings, gradients = run(model, *batch)
    ane.reset_counters()
    report = ane.convert(model, device=device)
    ours, our_gradients = run(model, *batch)
    counts = ane.counters()
    joined = [
        mx.concatenate([g[name].flatten() for name in gradients])
        for g in (our_gradients, gradients)
    ]
    forward = min(cosine(a, b) for a, b in zip(ours, embeddings, strict=True))
    gradient = cosine(*joined)
    return {
        "device": device,
        "layers converted": len(report.converted),
        "device calls": counts["device_calls"],
        "fallbacks": sum(n for k, n in counts.items() if k.startswith("fallback_")),
        "smallest cosine of an embedding": forward,
        "cosine of the gradients": gradient,
        "passed": forward >= FORWARD and gradient >= GRADIENT,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a folder or a hub id")
    parser.add_argument("--device", nargs="+", default=["cpu", "emulated"])
    args = parser.parse_args()
    if args.model is None:
        print("not run: name a pretrained sentence encoder, a folder or a hub id")
        return 0
    folder = Path(args.model)
    if not folder.exists():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(args.model))
    batch = tokenize(folder, SENTENCES)
    found = [check(load(folder), batch, device) for device in args.device]
    print(json.dumps(found, indent=2))
    return 0 if all(result["passed"] for result in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""A Llama-style GPT in plain MLX, with the parameter names of mlx-lm's Llama."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

Attention = Callable[..., mx.array]


@dataclass
class Config:
    """Sizes of a model, under the names that mlx-lm's config.json uses."""

    hidden_size: int = 192
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    intermediate_size: int = 512
    max_position_embeddings: int = 128
    vocab_size: int = 256
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"[gpt.Config] hidden_size is {self.hidden_size}, but with "
                f"{self.num_attention_heads} heads it must be a multiple of "
                f"{2 * self.num_attention_heads}."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"[gpt.Config] num_attention_heads is {self.num_attention_heads}, "
                f"but it must be a multiple of num_key_value_heads, "
                f"{self.num_key_value_heads}."
            )

    def to_json(self) -> dict[str, Any]:
        """The content of config.json, as mlx-lm reads it."""
        return {"model_type": "llama", "tie_word_embeddings": True, **asdict(self)}


# Shapes below: B sequences, L tokens, D hidden_size, H heads, G key-value heads,
# C = D / H channels a head, F intermediate_size, V vocab_size.


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions and a causal mask."""

    def __init__(self, config: Config, attention: Attention) -> None:
        super().__init__()
        dim, self.heads = config.hidden_size, config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        head_dim = dim // self.heads
        self.scale = head_dim**-0.5
        self.q_proj = nn.Linear(dim, self.heads * head_dim, bias=False)
        self.k_proj = nn.Linear(dim, self.kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(dim, self.kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * head_dim, dim, bias=False)
        self.rope = nn.RoPE(head_dim, base=config.rope_theta)
        self._attention = attention

    def __call__(self, x: mx.array) -> mx.array:
        # x: (B, L, D)
        split = (*x.shape[:2], -1, x.shape[2] // self.heads)
        q = self.q_proj(x).reshape(split).swapaxes(1, 2)  # (B, H, L, C)
        k = self.k_proj(x).reshape(split).swapaxes(1, 2)  # (B, G, L, C)
        v = self.v_proj(x).reshape(split).swapaxes(1, 2)  # (B, G, L, C)
        q, k = self.rope(q), self.rope(k)
        y = self._attention(q, k, v, scale=self.scale, mask="causal")
        return self.o_proj(y.swapaxes(1, 2).reshape(x.shape))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim, hidden = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        # x: (B, L, D), between: (B, L, F)
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: Config, attention: Attention) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, attention)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(
            config.hidden_size, config.rms_norm_eps
        )

    def __call__(self, x: mx.array) -> mx.array:
        # x: (B, L, D)
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: Config, attention: Attention) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [
            Block(config, attention) for _ in range(config.num_hidden_layers)
        ]
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(self, tokens: mx.array) -> mx.array:
        x = self.embed_tokens(tokens)  # (B, L, D)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class GPT(nn.Module):
    """Tokens to logits; the output head is the transposed embedding.

    Args:
        config (Config): The sizes.
        attention (Callable): Has the signature of
            ``mx.fast.scaled_dot_product_attention``, which is the default.
    """

    def __init__(
        self,
        config: Config,
        attention: Attention = mx.fast.scaled_dot_product_attention,
    ) -> None:
        super().__init__()
        self.model = Backbone(config, attention)

    def __call__(self, tokens: mx.array) -> mx.array:
        # tokens: (B, L) integers, result: (B, L, V)
        return self.model.embed_tokens.as_linear(self.model(tokens))


def loss(model: nn.Module, tokens: mx.array) -> mx.array:
    """Mean cross-entropy in nats of each next token. tokens: (B, L + 1)."""
    logits = model(tokens[:, :-1])
    return nn.losses.cross_entropy(logits, tokens[:, 1:], reduction="mean")

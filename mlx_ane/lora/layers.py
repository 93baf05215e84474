"""mlx-lm's LoRA layer around a layer of ours; imported once mlx-lm is."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.tuner.lora import LoRALinear

from mlx_ane._exchange import Exchanged, exchange
from mlx_ane.ops import linear


class ANELoRALinear(Exchanged, LoRALinear):
    """LoRALinear whose low-rank products are on the BLAS where MLX has no GPU.

    They are too small for an engine, and a large part of a step in MLX's CPU build.
    """

    _original = LoRALinear

    @staticmethod
    def from_base(base: Any, *args: Any, **kwargs: Any) -> Any:
        """mlx-lm's, with its arguments, around a layer of ours."""
        layer = LoRALinear.from_base(base, *args, **kwargs)
        exchange(layer, ANELoRALinear)
        return layer

    def __call__(self, x: mx.array) -> mx.array:
        # x: (..., K), lora_a: (K, r), lora_b: (r, N) -> (..., N)
        if mx.default_device() == mx.gpu:
            return super().__call__(x)
        z = linear(self.dropout(x), self.lora_a.T, device="cpu")
        z = linear(z, self.lora_b.T, device="cpu")
        return self.linear(x) + (self.scale * z).astype(x.dtype)

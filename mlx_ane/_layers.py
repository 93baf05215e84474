"""The layers of a model as convert, plan, verify and the autotuner see them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx import nn

from mlx_ane.nn import (
    ANEEmbedding,
    ANELinear,
    ANEQuantizedEmbedding,
    ANEQuantizedLinear,
)

#: The class of ours for each layer class of MLX. Subclasses are not in it: their
#: __call__ may do something else.
CLASSES: dict[type, type[Any]] = {
    nn.Linear: ANELinear,
    nn.QuantizedLinear: ANEQuantizedLinear,
    nn.Embedding: ANEEmbedding,
    nn.QuantizedEmbedding: ANEQuantizedEmbedding,
}
FLOATS = (mx.float32, mx.float16, mx.bfloat16)

#: Wrappers that multiply with the weight of their `linear` or `embedding`
#: themselves, so that converting it would change nothing.
_READS_AROUND = {
    "DoRALinear": "DoRALinear multiplies with the weight of its linear itself",
    "DoRAEmbedding": "DoRAEmbedding multiplies with the weight itself",
}

_SHARDED = "tensor parallelism: it holds a part of a weight and joins it with others"
#: Layers that multiply with more or less than one matrix, quantised or not.
_NO_SINGLE_MATRIX = {
    "SwitchLinear": "a mixture of experts: each token picks its weight (mx.gather_mm)",
    "MultiLinear": "one weight a head, multiplied as a batch",
    "AllToShardedLinear": _SHARDED,
    "ShardedToAllLinear": _SHARDED,
}


@dataclass
class Site:
    """A module of a model."""

    path: str
    module: nn.Module
    parent: nn.Module | None
    #: Other paths that lead to it.
    aliases: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its path; of the model itself, those of its own matrices."""
        return self.path or ", ".join(k for k, v in self.module.items() if _matrix(v))


def find_sites(model: nn.Module) -> list[Site]:
    """The model and every module below it, each object once, in the model's order."""
    sites: dict[int, Site] = {id(model): Site("", model, None)}

    def visit(container: Any, prefix: str, owner: nn.Module) -> None:
        for key, value in _entries(container):
            path = f"{prefix}.{key}" if prefix else str(key)
            if isinstance(value, nn.Module):
                if id(value) in sites:
                    sites[id(value)].aliases.append(path)
                else:
                    sites[id(value)] = Site(path, value, owner)
                    visit(value, path, value)
            elif isinstance(value, (dict, list, tuple)):
                visit(value, path, owner)

    visit(model, "", model)
    return list(sites.values())


def _entries(container: Any) -> Iterator[tuple[Any, Any]]:
    return iter(
        container.items() if isinstance(container, dict) else enumerate(container)
    )


def product_method(cls: type[Any]) -> str:
    """The method of a layer class in CLASSES that multiplies with its weight."""
    is_table = issubclass(cls, (nn.Embedding, nn.QuantizedEmbedding))
    return "as_linear" if is_table else "__call__"


def holds_matrix(module: nn.Module) -> bool:
    """Whether a module itself holds what may be a weight."""
    return any(map(_matrix, module.values()))


def _matrix(value: Any) -> bool:
    return isinstance(value, mx.array) and value.ndim >= 2


def product_shape(module: nn.Module) -> tuple[int, ...]:
    """(N, K) of the product that the layer makes; the weight's shape otherwise."""
    weight = module.get("weight")
    if not isinstance(weight, mx.array):
        weight = next(v for v in module.values() if _matrix(v))
    if isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding)):
        n, packed = weight.shape  # packed: 32-bit words
        return (n, packed * 32 // module.bits)
    return tuple(weight.shape)


def why_not(module: nn.Module, parent: nn.Module | None) -> str | None:
    """Why a layer cannot be converted, or None."""
    wrapper = type(parent).__name__
    if type(module) not in CLASSES:
        return _why_not_class(module)
    if wrapper in _READS_AROUND:
        return _READS_AROUND[wrapper]
    weight = module.get("weight")
    if not isinstance(weight, mx.array) or weight.ndim != 2:
        return "its weight is not a matrix"
    if "scales" not in module and weight.dtype not in FLOATS:
        return f"its weight is {weight.dtype}, need float32, float16 or bfloat16"
    return None


def _why_not_class(module: nn.Module) -> str:
    name = type(module).__name__
    if isinstance(module, nn.Linear):
        return "a subclass of nn.Linear, whose __call__ may differ"
    if isinstance(module, nn.QuantizedLinear):
        return "a subclass of nn.QuantizedLinear, whose __call__ may differ"
    if isinstance(module, nn.Embedding):
        return "a subclass of nn.Embedding, whose as_linear may differ"
    if isinstance(module, nn.QQLinear):
        return "nn.QQLinear quantises its input, which the engine's programs do not"
    if isinstance(module, nn.QuantizedEmbedding):
        return "a subclass of nn.QuantizedEmbedding, whose as_linear may differ"
    if name.startswith(("LoRA", "DoRA")):
        return "its low-rank matrices are no layer; what it wraps is listed apart"
    known = _NO_SINGLE_MATRIX.get(name.removeprefix("Quantized"))
    return f"{known}; it stays on MLX" if known else f"{name} is no linear layer"

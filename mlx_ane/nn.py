"""Layers of mlx.nn whose matrix products run on a device of ours.

Each keeps the parameters, paths and freezing of the layer that it stands for, so
that checkpoints, adapters and optimizer states stay those of plain MLX. What is
ours alone lives in attributes that begin with an underscore.
"""

from __future__ import annotations

from typing import Any, TypeVar

import mlx.core as mx
from mlx import nn

# By name: a test suite may put our layers in the place of these in mlx.nn.
from mlx.nn import Embedding, Linear, QuantizedEmbedding, QuantizedLinear

from mlx_ane import _ext
from mlx_ane._capturing import capturing
from mlx_ane._device import default_setting, resolve
from mlx_ane._exchange import Exchanged, exchange, restore, shallow_copy
from mlx_ane._types import Device, Precision
from mlx_ane.ops import bad_argument, plain_linear

M = TypeVar("M", bound=nn.Module)

__all__ = [
    "ANEEmbedding",
    "ANELinear",
    "ANEQuantizedEmbedding",
    "ANEQuantizedLinear",
]


class Placed(Exchanged):
    """Where the products of a layer run; mixed into each layer of this module."""

    _settings = ("_device", "_name", "_precision", "_only_frozen")

    #: A device name, or None to follow the default device.
    _device: Device | None = None
    #: The path in its model, numbered if other models have it too: the name of the
    #: layer in counters and errors.
    _name: str = ""
    _precision: Precision = "default"
    #: Policy "frozen": while its weight is trained, the layer runs on the CPU.
    _only_frozen: bool = False

    _no_grad: set[str]

    @property
    def device(self) -> str:
        """The device of the next call: "ane", "emulated" or "cpu"."""
        trained = "weight" not in self._no_grad
        if self._precision == "exact" or (self._only_frozen and trained):
            return "cpu"
        return resolve(self._device, "nn")

    def _product(self, x: mx.array, weight: mx.array, bias: mx.array | None) -> Any:
        if capturing():
            return plain_linear(x, weight, bias)
        # Freezing may change between calls: the weight store asks each time.
        try:
            return _ext.linear(
                x,
                weight,
                bias,
                device=self.device,
                name=self._name,
                frozen="weight" in self._no_grad,
                precision="high" if self._precision == "high" else "default",
            )
        except TypeError as error:
            raise bad_argument("nn", None, x=x, weight=weight, bias=bias) from error

    def _own_settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._settings}

    def _extra_repr(self) -> str:
        layer: Any = super()
        return f"{layer._extra_repr()}, device={self._device or default_setting()}"


def _quantized_product(layer: Any, x: mx.array) -> Any:
    """x (..., K) @ dequantised weight (N, K).T + bias (N,)."""
    if capturing():
        y = mx.quantized_matmul(
            x,
            layer["weight"],
            layer["scales"],
            layer.get("biases"),
            group_size=layer.group_size,
            bits=layer.bits,
            mode=layer.mode,
        )
        return y + layer["bias"] if "bias" in layer else y
    try:
        return _ext.quantized_linear(
            x,
            layer["weight"],
            layer["scales"],
            layer.get("biases"),
            layer.get("bias"),
            group_size=layer.group_size,
            bits=layer.bits,
            mode=layer.mode,
            device=layer.device,
            name=layer._name,
            frozen={"weight", "scales", "biases"} & layer.keys() <= layer._no_grad,
        )
    except TypeError as error:
        raise bad_argument("nn", None, x=x) from error


def placed(cls: type[M], layer: nn.Module, **settings: Any) -> M:
    """A new layer of ours with the arrays, freezing and attributes of a plain one."""
    new: Any = shallow_copy(layer)
    exchange(new, cls, **settings)
    return new


def _checked(cls: type[M], layer: object, device: Device | None, where: str) -> M:
    """What the `from_...` of a class return."""
    original: type[nn.Module] = cls._original
    where = f"nn.{cls.__name__}.{where}"
    if not isinstance(layer, original):
        raise ValueError(
            f"[mlx_ane.{where}] got {type(layer).__name__}, need "
            f"nn.{original.__name__}."
        )
    _check_device(device, where)
    return placed(cls, layer, _device=device)


def _plain(layer: M) -> Any:
    """What the `to_...` return: a new plain layer."""
    new = shallow_copy(layer)
    restore(new)
    return new


def _to_lora(layer: nn.Module, **options: Any) -> Any:
    # mlx-lm is optional, and who calls this has imported it.
    from mlx_ane.lora.layers import ANELoRALinear

    return ANELoRALinear.from_base(layer, **options)


def _check_device(device: Device | None, where: str) -> None:
    # None is resolved by the first call: a constructor runs no self-test.
    if device is not None:
        resolve(device, where)


class ANELinear(Placed, Linear):
    """:class:`mlx.nn.Linear` with its forward product on a device of ours.

    Args:
        input_dims (int): K, the size of the last axis of x.
        output_dims (int): N, the size of the last axis of y.
        bias (bool): Whether to add a bias. Default: ``True``.
        device (str, optional): "auto", "ane", "emulated" or "cpu"; None follows
            :func:`mlx_ane.default_device`.

    Example:
        >>> layer = ane.nn.ANELinear(8, 4, device="emulated")
        >>> layer(mx.ones((2, 8))).shape
        (2, 4)
    """

    _original = Linear

    def __init__(
        self,
        input_dims: int,
        output_dims: int,
        bias: bool = True,
        *,
        device: Device | None = None,
    ) -> None:
        _check_device(device, "nn.ANELinear")
        super().__init__(input_dims, output_dims, bias)
        self._device = device

    def __call__(self, x: mx.array) -> mx.array:
        # x: (..., K), weight: (N, K), bias: (N,) -> (..., N)
        return self._product(x, self["weight"], self.get("bias"))

    @classmethod
    def from_linear(cls, linear: Linear, device: Device | None = None) -> ANELinear:
        """The layer of the same arrays; freezing is kept.

        Args:
            linear (nn.Linear): The layer to stand for.
            device (str, optional): See the class.

        Raises:
            ValueError: If ``linear`` is not an nn.Linear or the device is unknown.
        """
        return _checked(cls, linear, device, "from_linear")

    def to_linear(self) -> Linear:
        """The plain layer of the same arrays; freezing is kept."""
        return _plain(self)

    def to_quantized(
        self,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        quantize_input: bool = False,
    ) -> nn.Module:
        """The quantised layer on the same device, as :func:`mlx.nn.quantize` asks.

        Args:
            group_size (int, optional): Elements that share a scale.
            bits (int, optional): Bits of an element.
            mode (str): MLX's quantisation mode.
            quantize_input (bool): Whether x is quantised too.

        Returns:
            ANEQuantizedLinear: Or nn.QQLinear, which quantises x too and runs on
            MLX, if ``quantize_input``.
        """
        plain = self.to_linear().to_quantized(group_size, bits, mode, quantize_input)
        if quantize_input:
            return plain
        return placed(ANEQuantizedLinear, plain, **self._own_settings())

    def to_lora(self, r: int = 8, dropout: float = 0.0, scale: float = 20.0) -> Any:
        """mlx-lm's LoRALinear around this layer, as ``linear_to_lora_layers`` asks.

        Its two low-rank products run on the CPU's BLAS where MLX has no GPU.

        Args:
            r (int): Rank of the adapter.
            dropout (float): Probability that an element of x is left out of it.
            scale (float): Factor of the adapter's output.

        Returns:
            LoRALinear: mlx-lm's class or a subclass of it, with new adapters.
        """
        return _to_lora(self, r=r, dropout=dropout, scale=scale)


class ANEQuantizedLinear(Placed, QuantizedLinear):
    """:class:`mlx.nn.QuantizedLinear` with its product on a device of ours.

    The quantised weight is frozen and stays the only copy that MLX holds. The
    gradient of x goes through dequantised panels of the weight. In mode "affine",
    scales and biases have gradients too: ``layer.unfreeze(keys=["scales", "biases"])``
    trains them.

    Args:
        input_dims (int): K, the size of the last axis of x.
        output_dims (int): N, the size of the last axis of y.
        bias (bool): Whether to add a bias. Default: ``True``.
        group_size (int, optional): Elements that share a scale.
        bits (int, optional): Bits of an element.
        mode (str): MLX's quantisation mode. Default: ``"affine"``.
        device (str, optional): "auto", "ane", "emulated" or "cpu"; None follows
            :func:`mlx_ane.default_device`.
    """

    _original = QuantizedLinear

    def __init__(
        self,
        input_dims: int,
        output_dims: int,
        bias: bool = True,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        *,
        device: Device | None = None,
    ) -> None:
        _check_device(device, "nn.ANEQuantizedLinear")
        super().__init__(input_dims, output_dims, bias, group_size, bits, mode)
        self._device = device

    def __call__(self, x: mx.array) -> mx.array:
        # x: (..., K), weight: (N, K) once dequantised, bias: (N,) -> (..., N)
        return _quantized_product(self, x)

    @classmethod
    def from_quantized_linear(
        cls, layer: QuantizedLinear, device: Device | None = None
    ) -> ANEQuantizedLinear:
        """The layer of the same quantised arrays; freezing is kept.

        Args:
            layer (nn.QuantizedLinear): The layer to stand for.
            device (str, optional): See the class.

        Raises:
            ValueError: If ``layer`` is of another class or the device is unknown.
        """
        return _checked(cls, layer, device, "from_quantized_linear")

    def to_lora(self, r: int = 8, dropout: float = 0.0, scale: float = 20.0) -> Any:
        """mlx-lm's LoRALinear around this layer: see :meth:`ANELinear.to_lora`."""
        return _to_lora(self, r=r, dropout=dropout, scale=scale)

    def to_quantized_linear(self) -> QuantizedLinear:
        """The plain quantised layer of the same arrays; freezing is kept."""
        return _plain(self)


class ANEEmbedding(Placed, Embedding):
    """:class:`mlx.nn.Embedding` whose ``as_linear`` runs on a device of ours.

    Looking tokens up is MLX's. ``as_linear`` is the output head of a model that
    ties it to its embedding.

    Args:
        num_embeddings (int): Rows of the table, N of the head.
        dims (int): Columns of the table, K of the head.
        device (str, optional): "auto", "ane", "emulated" or "cpu"; None follows
            :func:`mlx_ane.default_device`.
    """

    _original = Embedding

    def __init__(
        self, num_embeddings: int, dims: int, *, device: Device | None = None
    ) -> None:
        _check_device(device, "nn.ANEEmbedding")
        super().__init__(num_embeddings, dims)
        self._device = device

    def as_linear(self, x: mx.array) -> mx.array:
        """``x @ weight.T``: x (..., dims) to (..., num_embeddings)."""
        return self._product(x, self["weight"], None)

    @classmethod
    def from_embedding(
        cls, embedding: Embedding, device: Device | None = None
    ) -> ANEEmbedding:
        """The layer of the same table; freezing is kept.

        Args:
            embedding (nn.Embedding): The layer to stand for.
            device (str, optional): See the class.

        Raises:
            ValueError: If ``embedding`` is of another class or the device is unknown.
        """
        return _checked(cls, embedding, device, "from_embedding")

    def to_embedding(self) -> Embedding:
        """The plain layer of the same table; freezing is kept."""
        return _plain(self)

    def to_quantized(
        self,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        quantize_input: bool = False,
    ) -> ANEQuantizedEmbedding:
        """The quantised layer on the same device, as :func:`mlx.nn.quantize` asks.

        Args:
            group_size (int, optional): Elements that share a scale.
            bits (int, optional): Bits of an element.
            mode (str): MLX's quantisation mode.
            quantize_input (bool): Whether x is quantised too.
        """
        plain = self.to_embedding().to_quantized(group_size, bits, mode, quantize_input)
        return placed(ANEQuantizedEmbedding, plain, **self._own_settings())


class ANEQuantizedEmbedding(Placed, QuantizedEmbedding):
    """:class:`mlx.nn.QuantizedEmbedding` whose ``as_linear`` runs on a device of ours.

    Made from a quantised table, for the tied head of a quantised model.
    """

    _original = QuantizedEmbedding

    def as_linear(self, x: mx.array) -> mx.array:
        """``x @ weight.T``: x (..., dims) to (..., num_embeddings)."""
        return _quantized_product(self, x)

    @classmethod
    def from_quantized_embedding(
        cls, embedding: QuantizedEmbedding, device: Device | None = None
    ) -> ANEQuantizedEmbedding:
        """The layer of the same quantised arrays; freezing is kept.

        Args:
            embedding (nn.QuantizedEmbedding): The layer to stand for.
            device (str, optional): "auto", "ane", "emulated" or "cpu"; None follows
                :func:`mlx_ane.default_device`.
        """
        return _checked(cls, embedding, device, "from_quantized_embedding")

    def to_quantized_embedding(self) -> QuantizedEmbedding:
        """The plain quantised layer of the same arrays; freezing is kept."""
        return _plain(self)

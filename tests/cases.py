"""The one list of products that tests of values, gradients and speed run.

A new shape is one new line in CASES.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np


@dataclass(frozen=True)
class Case:
    """y = x @ weight.T + bias, with x and weight as views of a given kind."""

    name: str
    x: tuple[int, ...]  # (..., K)
    n: int
    bias: bool = True
    x_view: str = "plain"  # plain | transposed | sliced | broadcast | reversed
    w_view: str = "plain"

    def __str__(self) -> str:
        return self.name

    @property
    def rows(self) -> int:
        """S, the rows of x when its leading axes are folded."""
        return int(np.prod(self.x[:-1]))

    def arrays(
        self, dtype: mx.Dtype = mx.float32
    ) -> tuple[mx.array, mx.array, mx.array | None]:
        """x (..., K) from N(0, 1), weight (N, K) from N(0, 1/K), bias (N,)."""
        keys = mx.random.split(mx.random.key(sum(map(ord, self.name))), 3)
        k = self.x[-1]
        x = view_of(self.x, self.x_view, keys[0], 1.0, dtype)
        weight = view_of((self.n, k), self.w_view, keys[1], max(k, 1) ** -0.5, dtype)
        bias = mx.random.normal((self.n,), key=keys[2]).astype(dtype)
        mx.eval(x, weight, bias)
        return x, weight, bias if self.bias else None


def view_of(
    shape: tuple[int, ...], kind: str, key: mx.array, scale: float, dtype: mx.Dtype
) -> mx.array:
    """Normal numbers of a shape, as a view with the strides of this kind."""

    def normal(shape: tuple[int, ...]) -> mx.array:
        values = (scale * mx.random.normal(shape, key=key)).astype(dtype)
        mx.eval(values)
        return values

    if kind == "transposed":
        return normal((*shape[:-2], shape[-1], shape[-2])).swapaxes(-1, -2)
    if kind == "sliced":
        return normal((*shape[:-2], 2 * shape[-2] + 1, shape[-1] + 3))[..., 1::2, 2:-1]
    if kind == "reversed":
        return normal(shape)[..., ::-1, ::-1]
    if kind == "broadcast":
        return mx.broadcast_to(normal(shape[-1:]), shape)
    return normal(shape)


CASES = [
    Case("square", (64, 64), 64),
    Case("K>N", (48, 256), 40),
    Case("K<N", (48, 40), 256),
    Case("odd", (37, 45), 53),
    Case("no bias", (64, 96), 32, bias=False),
    Case("1 row", (1, 64), 48),
    Case("0 rows", (0, 64), 48),
    Case("1 column", (40, 1), 1),
    Case("vector", (64,), 48),
    Case("3-D", (2, 19, 40), 24),
    Case("4-D", (2, 3, 7, 40), 24),
    Case("x transposed", (48, 80), 64, x_view="transposed"),
    Case("x sliced", (2, 20, 40), 24, x_view="sliced"),
    Case("x reversed", (33, 40), 24, x_view="reversed"),
    Case("x broadcast", (40, 64), 24, x_view="broadcast"),
    Case("W transposed", (48, 80), 64, w_view="transposed"),
    Case("W sliced", (48, 80), 64, w_view="sliced"),
    Case("W broadcast", (48, 80), 64, w_view="broadcast"),
    Case("both views", (48, 80), 64, x_view="transposed", w_view="sliced"),
    Case("split K", (64, 3000), 96),
    Case("tiled S", (2100, 64), 32),
    Case("wide N", (40, 32), 4100),
]

DTYPES = [mx.float32, mx.float16, mx.bfloat16]

#: max |error| / max |y| of each device in fp32, and ||error|| / ||y|| on engines.
TOLERANCE = {"cpu": 1e-5, "emulated": 2e-3, "ane": 2e-3}


def exact(array: mx.array) -> np.ndarray:
    """The values of an array of any float type in float64."""
    return np.asarray(array.astype(mx.float32), np.float64)


def max_error(got: mx.array | np.ndarray, expected: np.ndarray) -> float:
    """max |got - expected| / max |expected|."""
    values = exact(got) if isinstance(got, mx.array) else got
    assert values.shape == expected.shape
    if expected.size == 0:
        return 0.0
    return float(np.abs(values - expected).max() / (np.abs(expected).max() or 1.0))


def norm_error(got: mx.array | np.ndarray, expected: np.ndarray) -> float:
    """||got - expected|| / ||expected||."""
    values = exact(got) if isinstance(got, mx.array) else got
    assert values.shape == expected.shape
    return float(np.linalg.norm(values - expected) / (np.linalg.norm(expected) or 1.0))


def reference(x: mx.array, weight: mx.array, bias: mx.array | None) -> np.ndarray:
    """x @ weight.T + bias in float64."""
    product = exact(x) @ exact(weight).T
    return product if bias is None else product + exact(bias)

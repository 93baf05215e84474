"""Padding: rows past S reach nothing, or the capture says so."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from blocks import BLOCKS, error, exact, llama, make
from mlx import nn

from mlx_ane.block import Block
from mlx_ane.capture import capture
from mlx_ane.tape import Unsupported

S, ROWS = 40, 64


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str) -> None:
    layer, call = make(name)
    x, dy = mx.random.normal((2, S, 64)), mx.random.normal((2, S, 64))
    y, gradients = exact(call, layer, x, dy)
    block = Block(call, layer, x, rows=ROWS)
    (got,) = block(layer, x)
    assert got.shape == y.shape
    assert error(got, y) < 1.5e-3
    found = block.gradients((layer, x), [np.array(dy)])
    assert found["1"].shape == x.shape
    for path, gradient in gradients.items():
        bound = 3e-2 if name == "relu" else 6e-3
        assert error(found[path], gradient) < bound, path


@pytest.mark.parametrize("name", BLOCKS)
def test_what_is_in_the_padding_does_not_matter(name: str) -> None:
    layer, call = make(name)
    x = mx.random.normal((2, S, 64))
    captured = capture(call, layer, x, rows=ROWS)
    inputs = captured.arguments(layer, x)
    place = captured.body.inputs.index(captured.data[0])
    assert inputs[place].shape == (2, ROWS, 64)
    results = []
    for noise in (0.0, 100.0):
        inputs[place][:, S:] = noise * mx.random.normal((2, ROWS - S, 64))
        results.append(captured.body.run(*inputs)[0][:, :S])
    # fp32 sums of another order: the products of other rows share their kernels.
    assert error(results[1], results[0]) < 1e-6
    assert error(results[0], call(layer, x)) < 1e-6


def test_masks_that_are_arguments() -> None:
    layer = llama()
    x = mx.random.normal((2, S, 64))
    boolean = mx.tril(mx.ones((S, S), mx.bool_))
    added = mx.where(boolean, 0.0, -mx.inf)[None, None]
    for mask in (boolean, added):
        block = Block(lambda layer, x, m: layer(x, m, None), layer, x, mask, rows=ROWS)
        assert error(block(layer, x, mask)[0], layer(x, mask, None)) < 1.5e-3
        table = block.captured.arguments(layer, x, mask)
        assert min(float(t.min()) for t in table) >= -30000.0


def test_a_causal_mask_needs_no_other() -> None:
    def scores(mask: str | None) -> int:
        q = mx.random.normal((1, 4, S, 16))
        captured = capture(
            lambda q: mx.fast.scaled_dot_product_attention(
                q, q, q, scale=0.25, mask=mask
            ),
            q,
            rows=ROWS,
        )
        return sum(n.name == "Add" for n in captured.body.nodes)

    assert scores("causal") == 0
    assert scores(None) == 1


def test_one_program_serves_several_numbers_of_rows() -> None:
    for name in ("llama", "bert"):
        layer, call = make(name)
        texts = set()
        for size in (33, 40, 63):
            block = Block(call, layer, mx.random.normal((2, size, 64)), rows=ROWS)
            x = mx.random.normal((2, size, 64))
            assert error(block(layer, x)[0], call(layer, x)) < 1.5e-3
            texts.add(block.forward.program.text())
        assert len(texts) == 1


REFUSED: dict[str, Callable[[mx.array], mx.array]] = {
    "a mean over rows": lambda x: x - x.mean(1, keepdims=True),
    "the number of rows": lambda x: x * x.shape[1],
    "another branch": lambda x: mx.tanh(x) if x.shape[1] < 50 else mx.abs(x),
    "a maximum over rows": lambda x: x + x.max(1, keepdims=True),
    "a softmax over rows": lambda x: mx.softmax(x, 1) + x,
    "a sum from the end": lambda x: x + mx.cumsum(x, 1, reverse=True),
    "rows in another order": lambda x: x + x[:, ::-1],
    "the last row": lambda x: x + x[:, -1:],
    "a product over rows": lambda x: x + x @ (x.swapaxes(1, 2) @ x),
    "dropout": lambda x: nn.Dropout(0.5)(x),
    "a table of rows": lambda x: x + mx.linspace(0, 1, x.shape[1])[:, None],
    "zeros over zeros": lambda x: x / (mx.abs(x).sum(-1, keepdims=True)),
    "a root of zero": lambda x: x * mx.sqrt(mx.abs(x)),
    "a norm without epsilon": lambda x: mx.fast.rms_norm(x, None, 0.0),
    "columns of rows": lambda x: mx.fast.rms_norm(x.swapaxes(1, 2), None, 1e-5),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    x = mx.random.normal((2, S, 64))
    with pytest.raises(Unsupported, match="Padding"):
        capture(REFUSED[name], x, rows=ROWS)
    assert capture(REFUSED[name], x).rows is None


def test_more_rows_than_the_program() -> None:
    with pytest.raises(ValueError, match="rows is 32, need 40"):
        capture(lambda x: x * 2, mx.ones((2, S, 64)), rows=32)


def test_other_arguments_than_captured() -> None:
    captured = capture(lambda x, y: x * y["a"], mx.ones((2, 8)), {"a": mx.ones((8,))})
    with pytest.raises(ValueError, match="hold 1 arrays, need the 2"):
        captured.arguments(mx.ones((2, 8)), {})

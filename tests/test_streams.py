"""Streams and threads: several at once give the numbers of one."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest
from cases import CASES, exact, norm_error, reference
from processes import run_python

import mlx_ane as ane


def test_explicit_streams(device: str) -> None:
    x, weight, bias = CASES[0].arrays()
    expected = ane.linear(x, weight, bias, device=device)
    for stream in (mx.cpu, mx.new_stream(mx.cpu), mx.new_thread_local_stream(mx.cpu)):
        y = ane.linear(x, weight, bias, device=device, stream=stream)
        assert mx.array_equal(y, expected)


def test_stream_context(device: str) -> None:
    x, weight, bias = CASES[0].arrays()
    expected = ane.linear(x, weight, bias, device=device)
    with mx.stream(mx.new_stream(mx.cpu)):
        y = ane.linear(mx.abs(x) * mx.sign(x), weight, bias, device=device)
    assert mx.array_equal(y, expected)


def test_layers_on_two_streams_in_one_graph(device: str) -> None:
    x, weight, _ = CASES[0].arrays()
    streams = [mx.new_stream(mx.cpu), mx.new_stream(mx.cpu)]

    def chain(x: mx.array, w: mx.array) -> mx.array:
        for i in range(8):
            x = mx.tanh(ane.linear(x, w, device=device, stream=streams[i % 2]))
        return x

    def plain(x: mx.array, w: mx.array) -> mx.array:
        for _ in range(8):
            x = mx.tanh(ane.linear(x, w, device=device))
        return x

    assert mx.array_equal(chain(x, weight), plain(x, weight))
    got = mx.grad(lambda w: mx.sum(chain(x, w)))(weight)
    want = mx.grad(lambda w: mx.sum(plain(x, w)))(weight)
    assert norm_error(got, exact(want)) <= 1e-5


def test_async_eval(device: str) -> None:
    x, weight, bias = CASES[1].arrays()
    ys = [ane.linear(x * i, weight, bias, device=device) for i in range(1, 6)]
    mx.async_eval(ys)
    for i, y in enumerate(ys, 1):
        assert norm_error(y, reference(x * i, weight, bias)) <= 2e-3


@pytest.mark.skipif(not mx.is_available(mx.gpu), reason="needs a GPU build of MLX")
def test_default_device_gpu(device: str) -> None:
    mx.set_default_device(mx.gpu)
    model = nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 64))
    x = mx.random.normal((40, 64))
    expected = exact(model(x))
    ane.convert(model, device=device)
    assert norm_error(model(x), expected) <= 5e-3


THREADS = """
import sys, threading
import mlx.core as mx, mlx.nn as nn
import mlx_ane as ane
from cases import exact, norm_error

device = sys.argv[1]
ane._ext.set_fallback("error")
layer = ane.nn.ANELinear(96, 64, device=device)
layer.freeze()  # both threads stage and use the same weight
mx.eval(layer.parameters())
weight, bias = exact(layer.weight), exact(layer.bias)
errors = []

def work(seed):
    x = mx.random.normal((48, 96), key=mx.random.key(seed))
    for _ in range(20):
        y = layer(x)
        gradient = mx.grad(lambda x: mx.sum(layer(x)))(x)
        mx.eval(y, gradient)
        errors.append(norm_error(y, exact(x) @ weight.T + bias))
        errors.append(norm_error(gradient, exact(mx.ones((48, 64))) @ weight))

threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(errors) == 4 * 20 * 2
print(max(errors))
"""


def test_threads_share_a_weight(device: str) -> None:
    done = run_python(THREADS, device)
    assert float(done.stdout) <= 2e-3

"""Bad input: one sentence that names what was got and what is needed."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from processes import run_python

import mlx_ane as ane
from mlx_ane import _ext, _versions

X, W, B = mx.ones((4, 8)), mx.ones((6, 8)), mx.ones((6,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((mx.ones((4, 7)), W), r"x of shape \(4,7\) and weight of shape \(6,8\)"),
        ((mx.array(1.0), W), r"x of shape \(\)"),
        ((X, mx.ones((6, 8, 1))), r"weight of shape \(6,8,1\), need two axes"),
        ((X, mx.ones((8,))), r"weight of shape \(8\), need two axes"),
        ((X, W, mx.ones((5,))), r"bias of shape \(5\)"),
        ((X, W, mx.ones((1, 6))), r"bias of shape \(1,6\)"),
        ((X.astype(mx.complex64), W), "x of dtype complex64, need float32, float16 or"),
        ((X, W.astype(mx.complex64)), "weight of dtype complex64, need float32"),
        ((X > 0, W.astype(mx.int8)), "x of dtype bool"),
        ((X, W, B.astype(mx.complex64)), "bias of dtype complex64"),
        ((np.ones((4, 8)), W), "x is ndarray, need mx.array"),
        ((X, [[1.0] * 8]), "weight is list, need mx.array"),
        ((X, W, 1.0), "bias is float, need mx.array"),
    ],
)
def test_linear_arguments(device: str, arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=r"^\[mlx_ane.linear\] .*" + message) as caught:
        ane.linear(*arguments, device=device)
    one_sentence(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, mx.ones((7, 3))), r"a \(4,8\) and b \(7,3\)"),
        ((mx.array(1.0), W), "got a scalar"),
        ((X.astype(mx.complex64), W.T), "a of dtype complex64"),
        ((X, W.T.astype(mx.complex64)), "b of dtype complex64"),
        ((X, 2.0), "b is float, need mx.array"),
    ],
)
def test_matmul_arguments(device: str, arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=r"^\[mlx_ane.matmul\] .*" + message) as caught:
        ane.matmul(*arguments, device=device)
    one_sentence(caught.value)


def test_matmul_batches_that_do_not_broadcast(device: str) -> None:
    with pytest.raises(ValueError, match="broadcast"):
        ane.matmul(mx.ones((2, 4, 8)), mx.ones((3, 8, 4)), device=device)


@pytest.mark.parametrize("name", ["gpu", "ANE", "", 3, mx.cpu, ["cpu"]])
def test_unknown_device(name: object) -> None:
    for call in (
        lambda: ane.linear(X, W, device=name),
        lambda: ane.matmul(X, W.T, device=name),
        lambda: ane.nn.ANELinear(8, 6, device=name),
        lambda: ane.nn.ANELinear.from_linear(nn.Linear(8, 6), name),
        lambda: ane.set_default_device(name),
        lambda: ane.device_info(name),
        lambda: ane.convert(nn.Sequential(nn.Linear(8, 6)), device=name),
    ):
        with pytest.raises(
            ValueError, match="need one of 'auto', 'ane', 'emulated', 'cpu' or None"
        ):
            call()
    assert ane.default_device() == "cpu"


@pytest.mark.skipif(
    _ext.unavailable("ane") is None, reason="the engine is there, or its doubles"
)
def test_missing_engine_is_a_runtime_error_with_the_reason() -> None:
    with pytest.raises(RuntimeError, match=r"'ane' is not available here: .*; use"):
        ane.linear(X, W, device="ane")
    with pytest.raises(RuntimeError, match="not available"):
        ane.set_default_device("ane")
    assert ane.default_device() == "cpu"
    assert not ane.is_available()
    assert ane.device_info("ane")["available"].startswith("no: ")


@pytest.mark.parametrize("stream", [mx.gpu, mx.Device(mx.gpu)])
def test_gpu_stream(device: str, stream: object) -> None:
    for call in (
        lambda: ane.linear(X, W, device=device, stream=stream),
        lambda: ane.matmul(X, W.T, device=device, stream=stream),
    ):
        with pytest.raises(ValueError, match=r"(?i)gpu stream"):
            call()


def test_stream_of_the_wrong_type(device: str) -> None:
    with pytest.raises(ValueError, match="stream is 'cpu', need an MLX CPU stream"):
        ane.linear(X, W, device=device, stream="cpu")


def test_layers_name_the_argument() -> None:
    layer = ane.nn.ANELinear(8, 6, device="cpu")
    with pytest.raises(ValueError, match=r"x of shape \(4,7\)"):
        layer(mx.ones((4, 7)))
    with pytest.raises(ValueError, match=r"x is ndarray, need mx.array"):
        layer(np.ones((4, 8)))


@pytest.mark.parametrize(
    ("factory", "wrong"),
    [
        (ane.nn.ANELinear.from_linear, nn.Embedding(3, 4)),
        (ane.nn.ANEEmbedding.from_embedding, nn.Linear(3, 4)),
        (ane.nn.ANEQuantizedLinear.from_quantized_linear, nn.Linear(64, 64)),
    ],
)
def test_factories_refuse_other_layers(factory, wrong: nn.Module) -> None:
    with pytest.raises(ValueError, match=f"got {type(wrong).__name__}, need nn"):
        factory(wrong)


def test_environment_reaches_the_process() -> None:
    done = run_python(
        "import mlx_ane; print(mlx_ane.default_device())", MLX_ANE_DEVICE="emulated"
    )
    assert done.stdout.strip() == "emulated"


def test_another_mlx_is_one_sentence_with_the_command() -> None:
    with pytest.raises(
        ImportError, match=r"mlx is version .*, .* built for 9\.9; run: pip install"
    ) as caught:
        _versions.check("9.9")
    one_sentence(caught.value)
    done = run_python(
        """
        import mlx.core as mx
        mx.__version__ = "0.1"
        import mlx_ane
        """,
        check=False,
    )
    assert "ImportError: [mlx_ane] mlx is version 0.1" in done.stderr
    assert "pip install 'mlx" in done.stderr


def test_another_nanobind_is_one_sentence_with_the_command() -> None:
    done = run_python(
        """
        import sys, types, importlib.util
        import mlx.core
        spec = importlib.util.find_spec("mlx_ane")
        package = types.ModuleType("mlx_ane")
        package.__path__ = spec.submodule_search_locations
        sys.modules["mlx_ane"] = package  # the package, its __init__ not yet run
        import mlx_ane._ext as _ext
        def accepts(*arguments, **options):
            raise TypeError("accepts(): incompatible function arguments")
        _ext.accepts = accepts
        from mlx_ane import _startup
        _startup.run()
        """,
        check=False,
    )
    assert "ImportError: [mlx_ane] the extension does not know the arrays" in (
        done.stderr
    )
    assert "pip install --force-reinstall" in done.stderr


def one_sentence(error: BaseException) -> None:
    """One line with the place in brackets, ending in one way."""
    text = str(error)
    assert text.startswith("[mlx_ane")
    assert "\n" not in text
    assert len(text) < 300

"""convert(attention="fused"): the modules of one model attend through ours."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import json
import pickle
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from cases import exact, norm_error
from mlx.utils import tree_flatten
from mlx_lm.models import base, llama
from processes import run_python
from test_convert import tiny_llama

import mlx_ane as ane
from mlx_ane._attention import attending_class

TOKENS = mx.arange(48)[None] % 80
TOLERANCE = {"cpu": 1e-5, "emulated": 1e-2, "ane": 1e-2}
X = mx.random.normal((1, 40, 32))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The devices that our function was called with."""
    found: list[str | None] = []
    ours = ane.fast.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> mx.array:
        found.append(kwargs["device"])
        return ours(*args, **kwargs)

    monkeypatch.setattr(ane.fast, "scaled_dot_product_attention", counted)
    return found


def code_of_mlx() -> dict[str, Any]:
    """All that a patch of MLX or mlx-lm could change: names and their objects."""
    places = [mx, mx.fast, nn, base, llama, llama.Attention, nn.MultiHeadAttention]
    found = {(str(p), n): v for p in places for n, v in vars(p).items()}
    functions = [base.scaled_dot_product_attention, llama.Attention.__call__]
    codes = {f.__qualname__: (f.__code__, f.__closure__) for f in functions}
    return found | codes


def test_one_model_of_two_attends_fused(device: str, calls) -> None:
    changed, plain = tiny_llama(), tiny_llama()
    plain.update(changed.parameters())
    expected = plain(TOKENS)
    mx.eval(expected)
    before = code_of_mlx()
    report = ane.convert(changed, device=device, attention="fused")
    after = code_of_mlx()
    assert before.keys() == after.keys()
    assert all(before[key] is after[key] or before[key] == after[key] for key in after)
    assert norm_error(changed(TOKENS), exact(expected)) <= TOLERANCE[device]
    assert calls == [device] * 2
    assert mx.array_equal(plain(TOKENS), expected)
    assert type(plain.layers[0].self_attn) is llama.Attention
    assert isinstance(changed.layers[0].self_attn, llama.Attention)
    assert len(calls) == 2
    assert [(a.path, a.kind, a.device, a.reason) for a in report.attention] == [
        (f"model.layers.{i}.self_attn", "Attention", device, "") for i in range(2)
    ]
    assert f"model.layers.1.self_attn  Attention  {device}" in report.full()
    assert f"attention on {device}: self_attn x 2" in str(report)
    rows = json.loads(json.dumps(report.to_dict()))["attention"]
    assert rows[0] == {
        "path": "model.layers.0.self_attn",
        "kind": "Attention",
        "device": device,
        "reason": "",
    }


@pytest.mark.parametrize("word", ["mlx", None])
def test_it_is_a_choice_of_each_conversion(word: str | None, calls) -> None:
    model = tiny_llama()
    fused = ane.convert(model, device="cpu", attention="fused")
    report = ane.convert(model, device="cpu", attention=word)
    assert report.attention is None and "attention" not in str(report)
    assert [a.device for a in fused.attention] == ["mlx", "mlx"]
    mx.eval(model(TOKENS))
    assert calls == []
    ane.convert(model, device="cpu", attention="fused")
    ane.revert(model)
    assert type(model.layers[0].self_attn) is llama.Attention
    assert not any(name.startswith("_a") for name in vars(model.layers[0].self_attn))
    mx.eval(model(TOKENS))
    assert calls == []


def test_exact_attends_on_the_blas(calls) -> None:
    model = tiny_llama()
    ane.convert(model, device="emulated", precision="exact", attention="fused")
    mx.eval(model(TOKENS))
    assert calls == ["cpu", "cpu"]


def test_unknown_word_converts_nothing() -> None:
    model = tiny_llama()
    message = r"\[mlx_ane.convert\] attention is 'flash', need one of 'fused', 'mlx'"
    with pytest.raises(ValueError, match=message):
        ane.convert(model, device="cpu", attention="flash")
    assert type(model.layers[0].mlp.up_proj) is nn.Linear


def test_a_model_without_attention_says_so() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    report = ane.convert(model, device="cpu", attention="fused")
    assert report.attention == []
    assert "no module calls MLX's scaled_dot_product_attention" in str(report)


def test_encoder_and_decoder_of_mlx(device: str, calls) -> None:
    model = nn.Transformer(32, 4, 1, 1, 64)
    source, target = X, mx.random.normal((1, 24, 32))
    mask = nn.MultiHeadAttention.create_additive_causal_mask(24)

    def run(model: nn.Module) -> Any:
        def loss(model: nn.Module) -> mx.array:
            return mx.square(model(source, target, None, mask, None)).mean()

        value, gradients = nn.value_and_grad(model, loss)(model)
        return value, mx.concatenate([g.flatten() for _, g in tree_flatten(gradients)])

    expected = [exact(a) for a in run(model)]
    report = ane.convert(model, device=device, attention="fused")
    assert [a.kind for a in report.attention] == ["MultiHeadAttention"] * 3
    for got, wanted in zip(run(model), expected, strict=True):
        assert norm_error(got, wanted) <= TOLERANCE[device]
    assert calls == [device] * 3


# -- ways to come to MLX's function ---------------------------------------------------


def attend(x: mx.array, scale: float) -> mx.array:
    x = x[:, None]  # (B, 1, T, D)
    return mx.fast.scaled_dot_product_attention(x, x, x, scale=scale)[:, 0]


def again(x: mx.array, *, scale: float = 0.5, times: int = 2) -> mx.array:
    x = attend(x, scale)
    return x if times == 1 else again(x, scale=scale, times=times - 1)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


sdpa = mx.fast.scaled_dot_product_attention
half = functools.partial(attend, scale=0.5)
this = sys.modules[__name__]
compiled = mx.compile(attend)
FACTOR = 1.0


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(32, 32)


class Direct(Layer):
    def __call__(self, x: mx.array) -> mx.array:
        y = self.proj(x)[:, None]
        return sdpa(y, y, y, scale=0.5)[:, 0] * FACTOR


class Helpers(Layer):
    def __call__(self, x: mx.array) -> mx.array:
        return again(self.proj(x))


class OfModule(Layer):
    def __call__(self, x: mx.array) -> mx.array:
        return this.attend(self.proj(x), 0.5)


class Methods(Layer):
    @staticmethod
    def _static(x: mx.array) -> mx.array:
        return attend(x, 0.5)

    @classmethod
    def _class(cls, x: mx.array) -> mx.array:
        return sum([attend(y, 0.5) for y in (x,)], cls.__name__.count(" "))

    def __call__(self, x: mx.array) -> mx.array:
        return self._static(self._class(self.proj(x)))


class Inherited(Methods):
    pass


class Decorated(Layer):
    @decorated
    def __call__(self, x: mx.array, *, scale: float = 0.5) -> mx.array:
        return half(self.proj(x)) + attend(x, scale)


class Attribute(Layer):
    attend = sdpa

    def __call__(self, x: mx.array) -> mx.array:
        y = self.proj(x)[:, None]
        return self.attend(y, y, y, scale=0.5)[:, 0]


class Compiled(Layer):
    def __call__(self, x: mx.array) -> mx.array:
        return compiled(self.proj(x), 0.5)


class Local(Layer):
    def __call__(self, x: mx.array) -> mx.array:
        import mlx.core.fast as fast

        y = self.proj(x)[:, None]
        return fast.scaled_dot_product_attention(y, y, y, scale=0.5)[:, 0]


class Held(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.attend = lambda x: attend(x, 0.5)

    def __call__(self, x: mx.array) -> mx.array:
        return self.attend(self.proj(x))


class Super(Direct):
    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x) + attend(x, 0.5)


@pytest.mark.parametrize(
    ("cls", "times", "reason"),
    [
        (Direct, 1, ""),
        (Helpers, 2, ""),
        (OfModule, 1, ""),
        (Methods, 2, ""),
        (Inherited, 2, ""),
        (Decorated, 2, ""),
        (Attribute, 1, ""),
        (Super, 1, "Direct.__call__: called by super()"),
        (Compiled, 0, "attend: compiled by mx.compile"),
        (
            Local,
            0,
            "__call__: which scaled_dot_product_attention it calls cannot be seen",
        ),
        (Held, 0, "attend: an attribute of the module"),
    ],
)
def test_what_is_rebound_and_what_is_reported(
    cls: type[Layer], times: int, reason: str, calls, request
) -> None:
    request.addfinalizer(mx.enable_compile)
    mx.disable_compile()
    model = cls()
    expected = exact(model(X))
    report = ane.convert(model, device="cpu", attention="fused")
    assert norm_error(model(X), expected) <= 1e-5
    assert calls == ["cpu"] * times
    found = [(a.path, a.kind, a.device, a.reason) for a in report.attention]
    name = cls.__name__  # of the model itself
    assert found == [(name, name, "cpu" if times else "mlx", reason)]
    other = cls()
    mx.eval(other(X))
    assert calls == ["cpu"] * times  # a model beside it does not attend by ours
    if times:
        assert inspect.signature(type(model).__call__) == inspect.signature(
            cls.__call__
        )


def test_other_globals_are_those_of_the_moment(monkeypatch) -> None:
    model = Direct()
    ane.convert(model, device="cpu", attention="fused")
    before = model(X)
    monkeypatch.setattr(this, "FACTOR", 2.0)
    assert mx.array_equal(model(X), 2.0 * before)


def test_a_patched_class_is_made_anew(calls, monkeypatch) -> None:
    ane.convert(Direct(), device="cpu", attention="fused")
    old = Direct.__call__
    monkeypatch.setattr(Direct, "__call__", lambda self, x: 3.0 * old(self, x))
    model = Direct()
    expected = exact(model(X))
    ane.convert(model, device="cpu", attention="fused")
    assert norm_error(model(X), expected) <= 1e-5
    assert calls == ["cpu"]


# -- copies, compile, verify ----------------------------------------------------------


def test_copies_attend_fused(device: str, calls) -> None:
    model = tiny_llama()
    ane.convert(model, device=device, attention="fused")
    expected = model(TOKENS)
    for clone in (
        copy.deepcopy(model),
        *(pickle.loads(pickle.dumps(model, protocol)) for protocol in (2, 5)),
    ):
        calls.clear()
        assert mx.array_equal(clone(TOKENS), expected)
        assert calls == [device] * 2
        assert type(clone.layers[0].self_attn) is type(model.layers[0].self_attn)
        ane.revert(clone)
        assert type(clone.layers[0].self_attn) is llama.Attention


LOAD = """
import pickle, sys
import mlx.core as mx
import mlx_ane as ane
calls = []
real = ane.fast.scaled_dot_product_attention
ane.fast.scaled_dot_product_attention = lambda *a, device, **k: (
    calls.append(device) or real(*a, device=device, **k)
)
model = pickle.load(open(sys.argv[1], "rb"))
mx.savez(sys.argv[2], y=model(mx.arange(48)[None] % 80))
assert calls == ["emulated"] * 2, calls
"""


def test_a_pickle_loads_in_a_fresh_process(tmp_path: Path) -> None:
    model = tiny_llama()
    ane.convert(model, device="emulated", attention="fused")
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    run_python(LOAD, str(tmp_path / "model.pickle"), str(tmp_path / "y.npz"))
    got = mx.load(str(tmp_path / "y.npz"))["y"]
    assert mx.array_equal(got, model(TOKENS))


def test_a_compiled_step(device: str, calls) -> None:
    model = nn.MultiHeadAttention(32, 4)
    x = mx.random.normal((1, 40, 32))
    expected = exact(model(x, x, x))
    ane.convert(model, device=device, attention="fused")
    step = mx.compile(lambda x: model(x, x, x))
    for _ in range(2):
        assert norm_error(step(x), expected) <= TOLERANCE[device]
    assert calls == [device]  # traced once


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_verify_compares_with_plain_attention(
    factor: float, device: str, monkeypatch
) -> None:
    model = tiny_llama()
    ane.convert(model, device=device, attention="fused")
    ours = ane.fast.scaled_dot_product_attention
    monkeypatch.setattr(
        ane.fast, "scaled_dot_product_attention", lambda *a, **k: factor * ours(*a, **k)
    )
    kinds = [type(m) for m in model.modules()]
    report = ane.verify(model, TOKENS)
    assert report.passed == (factor == 1.0), str(report)
    assert [type(m) for m in model.modules()] == kinds
    assert {c.path for c in report.layers} == {
        c.path for c in ane.convert(model, device=device).converted
    }


def test_attention_on_an_engine_has_its_tolerance(engine: str) -> None:
    model = tiny_llama()
    ane.convert(model, device=engine, policy="frozen", attention="fused")
    report = ane.verify(model, TOKENS)
    assert {c.device for c in report.layers} == {"cpu"}
    assert report.output_error > 1e-5  # the engine attended
    assert report.passed, str(report)


# -- mlx-lm ---------------------------------------------------------------------------


def attending_models(names: list[str]) -> dict[str, str]:
    """Classes whose source names the function, with what our report would say."""
    found = {}
    for name in names:
        module = importlib.import_module(f"mlx_lm.models.{name}")
        for cls in vars(module).values():
            if not (inspect.isclass(cls) and cls.__module__ == module.__name__):
                continue
            if issubclass(cls, nn.Module):
                fused, why = attending_class(cls.__new__(cls), None)
                named = "scaled_dot_product_attention(" in inspect.getsource(cls)
                if fused or why or named:
                    kind = "fused" if fused else "mlx"
                    found[f"{name}.{cls.__name__}"] = f"{kind} {why}".strip()
    return found


def test_classes_of_mlx_lm() -> None:
    names = ["llama", "deepseek_v41", "iquestloopcoder", "muse_spark", "plamo2"]
    found = attending_models(names)
    assert len(found) >= len(names)
    assert set(found.values()) == {"fused"}
    cls, _ = attending_class(llama.Attention.__new__(llama.Attention), None)
    assert isinstance(cls.__call__, FunctionType)


@pytest.mark.slow
def test_every_class_of_mlx_lm() -> None:
    import mlx_lm.models

    names = [m.name for m in pkgutil.iter_modules(mlx_lm.models.__path__)]
    found = attending_models([name for name in names if name != "olmo"])
    assert len(found) > 100
    assert set(found.values()) == {"fused"}

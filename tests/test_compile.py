"""ane.compile and convert(granularity="block"): programs of whole functions."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import DEVICES, ENGINES
from mlx import nn
from mlx import optimizers as optim
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.tuner.lora import LoRALinear

import mlx_ane as ane
from mlx_ane.block import Block
from mlx_ane.builder import FORMS
from mlx_ane.translate import choose

compiler = sys.modules["mlx_ane.compile"]
ENGINE = ENGINES[-1] if ENGINES else ""
pytestmark = pytest.mark.skipif(not ENGINES, reason="no engine among the devices")
ROWS = (2, 40)
TINY = llama.ModelArgs(
    model_type="llama",
    hidden_size=64,
    num_hidden_layers=3,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    vocab_size=96,
    tie_word_embeddings=True,
)


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    mx.random.seed(0)
    ane.reset_counters()
    yield
    ane.reset_counters()


def error(got: mx.array, expected: mx.array) -> float:
    a, b = (np.array(x.astype(mx.float32), np.float64) for x in (got, expected))
    return float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0))


class MLP(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.up = nn.Linear(width, 96)
        self.down = nn.Linear(96, width)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.down(nn.gelu(self.up(self.norm(x))))


def gradients(fun: Callable[..., Any], module: nn.Module, x: mx.array) -> Any:
    dy = mx.random.normal(x.shape, key=mx.random.key(1))

    def loss(parameters: Any, x: mx.array) -> mx.array:
        module.update(parameters)
        return (fun(module, x) * dy).sum()

    parameters = module.trainable_parameters()
    found = mx.grad(loss, (0, 1))(parameters, x)
    module.update(parameters)
    return dict(tree_flatten(found))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("compiled", [False, True])
def test_values_and_gradients(dtype: mx.Dtype, compiled: bool) -> None:
    module = MLP()
    module.set_dtype(dtype)
    x = mx.random.normal((*ROWS, 64)).astype(dtype)
    fun = ane.compile(lambda module, x: module(x), device=ENGINE)
    plain = MLP()
    plain.update(
        {k: v for k, v in module.parameters().items()}  # the same values
    )
    plain.set_dtype(mx.float32)
    wide = x.astype(mx.float32)
    tolerance = {mx.float32: 1e-3, mx.float16: 2e-3, mx.bfloat16: 1e-2}[dtype]
    run = mx.compile(fun, inputs=module.state) if compiled else fun
    y = run(module, x) if not compiled else mx.compile(lambda x: fun(module, x))(x)
    assert y.dtype == dtype
    assert error(y, plain(wide)) < tolerance
    got = gradients(fun, module, x)
    expected = gradients(lambda m, x: m(x), plain, wide)
    assert got.keys() == expected.keys()
    for key, gradient in expected.items():
        assert error(got[key], gradient) < 6 * tolerance, key
        assert got[key].dtype == dtype, key
    counts = ane.counters()
    assert counts["device_calls"] == counts["block_calls"] > 0
    assert not [k for k, n in counts.items() if n and k.startswith("fallback_")]


class Attention(nn.Module):
    """Every row attends to every row: padding must be masked out."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(64, 192)

    def __call__(self, x: mx.array) -> mx.array:
        q, k, v = (y[:, None] for y in mx.split(self.qkv(x), 3, axis=-1))
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.125, mask=None)
        return x + y[:, 0]


@pytest.mark.parametrize("make", [MLP, Attention])
def test_lengths_of_a_bucket_share_programs(make: type[nn.Module]) -> None:
    module = make()
    fun = ane.compile(lambda module, x: module(x), device=ENGINE)
    for size in (33, 48, 63):
        x = mx.random.normal((2, size, 64))
        y = fun(module, x)
        assert y.shape == x.shape
        assert error(y, module(x)) < 1e-3
        got = gradients(fun, module, x)
        for key, gradient in gradients(lambda m, x: m(x), module, x).items():
            assert error(got[key], gradient) < 6e-3, key
    assert ane.counters()["compiles"] == 2


def test_a_function_of_the_number_of_rows_is_not_padded() -> None:
    fun = ane.compile(lambda x: x - x.mean(1, keepdims=True), device=ENGINE)
    for size in (33, 48):
        x = mx.random.normal((2, size, 64))
        assert error(fun(x), x - x.mean(1, keepdims=True)) < 1e-3
    assert ane.counters()["compiles"] == 2


def test_an_array_that_is_closed_over_has_a_gradient() -> None:
    weight = mx.random.normal((64, 64)) / 8
    x = mx.random.normal((*ROWS, 64))
    fun = ane.compile(lambda x, w: mx.tanh(x @ w), device=ENGINE)
    got = mx.grad(lambda w: fun(x, w).sum())(weight)
    expected = mx.grad(lambda w: mx.tanh(x @ w).sum())(weight)
    assert error(got, expected) < 5e-3


def test_a_module_must_be_an_input() -> None:
    layer = nn.Linear(64, 64)
    with pytest.raises(ValueError, match=r"\[mlx_ane.compile\].*Linear.*inputs"):
        ane.compile(lambda x: layer(x), device=ENGINE)
    fun = ane.compile(lambda x: layer(x), layer, device=ENGINE)
    x = mx.random.normal((*ROWS, 64))
    assert error(fun(x), layer(x)) < 1e-3
    layer.weight = layer.weight * 2  # read at each call
    assert error(fun(x), layer(x)) < 1e-3


def test_on_the_cpu_the_function_itself_runs() -> None:
    fun = ane.compile(lambda x: x * 2, device="cpu")
    assert fun(mx.ones((3,))).tolist() == [2, 2, 2]
    assert ane.counters()["block_calls"] == 0


def test_other_transforms_use_the_function() -> None:
    module = MLP()
    fun = ane.compile(lambda x: module(x), module, device=ENGINE)
    x, t = (mx.random.normal((*ROWS, 64)) for _ in range(2))
    _, tangent = mx.jvp(fun, [x], [t])
    _, expected = mx.jvp(module, [x], [t])
    assert error(tangent[0], expected[0]) < 1e-4
    xs = mx.random.normal((3, *ROWS, 64))
    assert error(mx.vmap(fun)(xs), mx.vmap(module)(xs)) < 1e-4

    def slope(f: Callable[..., mx.array]) -> Callable[..., mx.array]:
        return lambda x: (mx.grad(lambda x: f(x).sum())(x) ** 2).sum()

    assert error(mx.grad(slope(fun))(x), mx.grad(slope(module))(x)) < 1e-2


def test_dropout_draws_as_plain_mlx_does() -> None:
    drop = nn.Dropout(0.5)
    layer = nn.Linear(64, 64)
    fun = ane.compile(lambda x: drop(layer(x)), [drop, layer], device=ENGINE)
    x = mx.random.normal((*ROWS, 64))
    mx.random.seed(3)
    got, after = fun(x), mx.random.uniform()
    mx.random.seed(3)
    expected, plain_after = drop(layer(x)), mx.random.uniform()
    assert error(got, expected) < 1e-3
    assert after.item() == plain_after.item()
    assert error(fun(x), got) > 0.1  # another draw


def model_and_tokens() -> tuple[nn.Module, mx.array]:
    model = llama.Model(TINY)
    return model, mx.random.randint(0, 96, (2, 41))


def loss(model: nn.Module, tokens: mx.array) -> mx.array:
    logits = model(tokens[:, :-1]).astype(mx.float32)
    return nn.losses.cross_entropy(logits, tokens[:, 1:]).mean()


def test_convert_by_blocks() -> None:
    model, tokens = model_and_tokens()
    paths = [k for k, _ in tree_flatten(model.parameters())]
    plain_loss, plain = nn.value_and_grad(model, loss)(model, tokens)
    mx.eval(plain_loss, plain)
    layers = list(model.layers)
    report = ane.convert(model, device=ENGINE, granularity="block")
    assert [k for k, _ in tree_flatten(model.parameters())] == paths
    assert all(a is b for a, b in zip(layers, model.layers, strict=True))
    blocks = [c for c in report.converted if c.kind == "ANETransformerBlock"]
    assert [c.path for c in blocks] == [f"model.layers.{i}" for i in range(3)]
    value, found = nn.value_and_grad(model, loss)(model, tokens)
    mx.eval(value, found)
    assert abs(value.item() - plain_loss.item()) < 1e-3
    got = dict(tree_flatten(found))
    for key, gradient in tree_flatten(plain):
        assert error(got[key], gradient) < 6e-3, key
    counts = ane.counters()
    assert counts["block_calls"] == 6
    # Forward and backward of equal layers share two programs; one is the head's.
    assert counts["compiles"] <= 3
    live = report.placement()
    assert live["model.layers.1"]["calls"] == live["model.layers.1"]["on_device"] == 2
    ane.revert(model)
    assert type(model.layers[0]) is llama.TransformerBlock
    assert ane.counters()["block_calls"] == 6
    again, _ = nn.value_and_grad(model, loss)(model, tokens)
    assert again.item() == plain_loss.item()


def test_a_cache_and_few_rows_run_the_blocks_as_they_were() -> None:
    model, tokens = model_and_tokens()
    cache = model.make_cache() if hasattr(model, "make_cache") else None
    if cache is None:
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(model)
    expected = model(tokens[:, :8])
    report = ane.convert(model, device=ENGINE, granularity="block")
    assert error(model(tokens[:, :8]), expected) < 1e-5  # 16 rows: on the BLAS
    assert error(model(tokens[:, :8], cache=cache), expected) < 1e-5
    assert report.placement()["model.layers.0"]["placed"] == {
        "few_rows": 1,
        "kv_cache": 1,
    }


def test_frozen_parameters_stay_on_the_device() -> None:
    model = Stack(MLP)
    model.freeze()
    x = mx.random.normal((*ROWS, 64))
    expected = model(x)
    ane.convert(model, device=ENGINE, granularity="block")
    mx.eval(model(x))
    first = ane.counters()
    assert first["weights_staged_bytes"] > 0
    ane.reset_counters()
    assert error(model(x), expected) < 2e-3
    counts = ane.counters()
    assert counts["weights_staged_bytes"] == counts["weights_packed_bytes"] == 0
    assert counts["block_packed_bytes"] < first["block_packed_bytes"] + 1
    model.layers[0].up.weight = model.layers[0].up.weight * 2  # another buffer
    changed = model(x)
    mx.eval(changed)
    assert error(changed, expected) > 1e-2
    ane.revert(model)
    assert error(changed, model(x)) < 2e-3


class Adapted(MLP):
    """A quantised MLP with trained adapters."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.freeze()
        bits = {"affine": 4, "mxfp8": 8}[mode]
        nn.quantize(self, group_size=32, bits=bits, mode=mode)
        self.up = LoRALinear.from_base(self.up, r=4)
        self.up.lora_b = mx.random.normal(self.up.lora_b.shape) * 0.1


@pytest.mark.parametrize("mode", ["affine", "mxfp8"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_quantised_weights_are_dequantised_once(
    mode: str, compiled: bool, dtype: mx.Dtype
) -> None:
    model = nn.Sequential(Adapted(mode), Adapted(mode))
    model.set_dtype(dtype)
    x = mx.random.normal((*ROWS, 64)).astype(dtype)

    def loss(model: nn.Module, x: mx.array) -> mx.array:
        return model(x).astype(mx.float32).square().mean()

    plain_loss, plain = nn.value_and_grad(model, loss)(model, x)
    mx.eval(plain_loss, plain)
    ane.convert(model, device=ENGINE, granularity="block")
    value, found = nn.value_and_grad(model, loss)(model, x)
    assert abs(value.item() - plain_loss.item()) < 1e-2 * plain_loss.item()
    tolerance = 6e-3 if dtype == mx.float32 else 2e-2
    got = dict(tree_flatten(found))
    for key, gradient in tree_flatten(plain):
        assert error(got[key], gradient) < tolerance, key

    optimizer = optim.SGD(1e-3)  # adapters are packed in each call
    state = [model.state, optimizer.state, mx.random.state]

    def step(x: mx.array) -> mx.array:
        value, gradients = nn.value_and_grad(model, loss)(model, x)
        optimizer.update(model, gradients)
        return value

    step = mx.compile(step, inputs=state, outputs=state) if compiled else step
    losses = []
    for i in range(5):
        if i == 2:
            assert ane.counters()["weights_staged_bytes"] > 0
            ane.reset_counters()
        losses.append(step(x).item())
        mx.eval(state)
    assert losses == sorted(losses, reverse=True)
    counts = ane.counters()
    assert counts["block_calls"] == 12
    assert counts["weights_staged_bytes"] == counts["weights_packed_bytes"] == 0


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_of_scales(frozen: bool) -> None:
    layer = nn.Linear(64, 96).to_quantized(32, 4)
    if not frozen:
        nn.Module.unfreeze(layer, keys=["scales", "biases"])
    x = mx.random.normal((*ROWS, 64))

    def found(fun: Callable[..., mx.array]) -> list[mx.array]:
        def loss(*parts: mx.array) -> mx.array:
            layer.scales, layer.biases = parts
            return fun(layer, x).square().sum()

        parts = layer.scales, layer.biases
        gradients = mx.grad(loss, (0, 1))(*parts)
        layer.scales, layer.biases = parts
        return list(gradients)

    expected = found(lambda layer, x: layer(x))
    got = found(ane.compile(lambda layer, x: layer(x), device=ENGINE))
    for a, b in zip(got, expected, strict=True):
        assert error(a, b) < 2e-3
    assert ane.counters()["weights_staged_bytes"] == 96 * 64 * 2 * frozen


def test_other_scales_are_staged_anew() -> None:
    module = MLP()
    nn.quantize(module, group_size=32, bits=4)
    fun = ane.compile(lambda x: module(x), module, device=ENGINE)
    x = mx.random.normal((*ROWS, 64))
    before = fun(x)
    assert error(before, module(x)) < 2e-3
    module.up.scales = module.up.scales * 2
    assert error(fun(x), module(x)) < 2e-3
    assert error(fun(x), before) > 1e-2


@pytest.mark.parametrize("place", ["engine", "host"])
@pytest.mark.parametrize("shape", [(*ROWS, 64), (64, 64)])
def test_quantised_weights_on_the_engine_and_the_host(
    place: str, shape: tuple[int, ...]
) -> None:
    module = nn.Linear(64, 96, bias=False)
    nn.quantize(layers := nn.Sequential(module), group_size=32, bits=4)
    fun = ane.compile(lambda x: layers(x), layers, device=ENGINE)
    x = mx.random.normal(shape)
    if place == "host":
        x[..., 0] = 1e5  # does not fit fp16
    y, (dx,) = mx.vjp(fun, [x], [dy := mx.random.normal((*shape[:-1], 96))])
    expected, (plain_dx,) = mx.vjp(layers, [x], [dy])
    tolerance = 2e-3 if place == "engine" else 1e-6
    assert error(y[0], expected[0]) < tolerance
    assert error(dx, plain_dx) < tolerance
    assert bool(ane.counters()["placed_out_of_range"]) == (place == "host")


def test_quantised_weights_past_the_budget_are_packed_in_each_call() -> None:
    linears = [nn.Linear(64, 96, bias=False) for _ in range(8)]
    layers = [layer.to_quantized(32, 4) for layer in linears]
    fun = ane.compile(lambda layer, x: layer(x), device=ENGINE)
    x = mx.random.normal((64, 64))
    mx.eval(fun(layers[0], x))
    previous = ane.set_cache_limit(450_000)  # of 64 KiB each, some
    try:
        for layer in layers * 2:
            assert error(fun(layer, x), layer(x)) < 2e-3
    finally:
        ane.set_cache_limit(previous)
    counts = ane.counters()
    assert counts["weights_packed_bytes"] > 0
    assert counts["device_calls"] == counts["block_calls"] == 17


class Sorting(nn.Module):
    """A block with an operation that no program has."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = MLP()

    def __call__(self, x: mx.array) -> mx.array:
        return mx.sort(self.mlp(x), axis=-1)


class Stack(nn.Module):
    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.layers = [block() for _ in range(2)]

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = layer(x)
        return x


def test_what_is_no_program_falls_back_to_its_children() -> None:
    model = Stack(Sorting)
    x = mx.random.normal((*ROWS, 64))
    expected = model(x)
    report = ane.convert(model, device=ENGINE, granularity="block")
    for _ in range(2):
        assert error(model(x), expected) < 1e-3
    assert type(model.layers[0].mlp).__name__ == "ANEMLP"
    assert ane.counters()["block_calls"] == 4  # the children's
    live = report.placement()["layers.0"]
    assert live["placed"] == {"untranslated": 2}
    assert "Sort" in str(report)
    ane.revert(model)
    assert type(model.layers[0].mlp) is MLP


FORM_FUNCTIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "concat": lambda x: mx.concatenate([x, 2 * x], -1),
    "slice": lambda x: x[..., 8:40] * 2,
    "sum": lambda x: x - x.sum(-1, keepdims=True),
    "max": lambda x: x - x.max(-1, keepdims=True),
    "maximum": lambda x: mx.maximum(x, 0.25 * x),
    "rsqrt": lambda x: mx.rsqrt(mx.abs(x) + 0.5),
    "sigmoid": mx.sigmoid,
    "compare": lambda x: mx.where(x > 0.5, x, -3 * x),
    "select": lambda x: mx.where(x > 0.5, x, -3 * x),
}


def operations(
    fun: Callable[[mx.array], mx.array], x: mx.array, **forms: str
) -> set[str]:
    text = Block(fun, x, **forms).forward.program.text()
    return set(re.findall(r"= (\w+)\(", text))


@pytest.mark.skipif("emulated" not in DEVICES, reason="its operations are refused")
@pytest.mark.parametrize(
    ("form", "choice"),
    [(f, c) for f, (choices, _) in FORMS.items() if f != "weights" for c in choices],
)
def test_every_form_where_the_others_are_refused(
    form: str, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fun = FORM_FUNCTIONS[form]
    x = mx.random.normal((*ROWS, 64))
    x = mx.where(mx.abs(x - 0.5) < 0.01, 0.0, x)  # fp16 would jump elsewhere
    own = operations(fun, x, **{form: choice})
    others = [operations(fun, x, **{form: c}) for c in FORMS[form][0] if c != choice]
    refused = set[str]().union(*others) - own
    known = set(ane.emulated.operations())
    before = ane.emulated.options()
    try:
        ane.emulated.configure(refuse=refused & known, allow=["disputed", "compiles"])
        right = {f"{form}={choice}"}
        monkeypatch.setattr(compiler, "right_forms", lambda _: frozenset(right))
        assert error(ane.compile(fun, device="emulated")(x), fun(x)) < 2e-3
        counts = ane.counters()
        assert (counts["device_calls"], counts["compiles"]) == (1, 1), refused
        default = operations(fun, x)
        if default & refused:  # what is not known is tried, refused and counted
            monkeypatch.setattr(compiler, "right_forms", lambda _: None)
            ane.set_fallback("allow")
            assert error(ane.compile(fun, device="emulated")(x), fun(x)) < 2e-3
            assert ane.counters()["fallback_compile_failed"] == 1
    finally:
        ane.emulated.configure(refuse=[], allow=before["allow"])
        ane.set_fallback("error")


def test_forms_that_are_right() -> None:
    assert choose(None) == {}
    assert choose({"sigmoid=exp", "max=reduce_max", "max=tree"}) == {"sigmoid": "exp"}


def test_machines_of_few_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Stack(MLP)
    x = mx.random.normal((*ROWS, 64))
    expected = model(x)
    for right, calls in (
        ({"ports=20"}, 2),
        ({"ports=7", "weights=rows"}, 2),
        ({"ports=2"}, 0),
    ):
        monkeypatch.setattr(compiler, "right_forms", lambda _, r=right: frozenset(r))
        ane.reset_counters()
        report = ane.convert(model, device=ENGINE, granularity="block")
        assert error(model(x), expected) < 2e-3
        assert ane.counters()["block_calls"] == calls, right
        assert ("2 are right on this machine" in report.full()) == (calls == 0)
        ane.revert(model)


@pytest.mark.skipif("ane" not in DEVICES, reason="only ane has a stream of its own")
def test_no_program_waits_for_weight_gradients() -> None:
    class Three(Stack):
        def __init__(self) -> None:
            super().__init__(MLP)
            self.layers.append(MLP())

    model = Three()
    x = mx.random.normal((*ROWS, 64))
    ane.convert(model, device="ane", granularity="block")

    def loss(parameters: Any) -> mx.array:
        model.update(parameters)
        return model(x).sum()

    mx.eval(mx.grad(loss)(model.parameters()))
    with ane.emulated.faults("slow:ms=40"), ane.timeline() as recording:
        mx.eval(mx.grad(loss)(model.parameters()))

    def spans(kind: str, i: int) -> list[dict[str, Any]]:
        layer = f"layers.{i}"
        found = [e for e in recording.events if e["name"] == kind]
        return [e for e in found if e["args"]["layer"] == layer]

    def end(event: dict[str, Any]) -> float:
        return event["ts"] + event["dur"]

    for i in (2, 1):
        back, before = spans("evaluate", i)[-1], spans("evaluate", i - 1)[-1]
        products = spans("gemm_dw", i)
        assert len(products) == 2
        # On another thread; of their own block they have the results.
        assert back["tid"] == before["tid"] not in {e["tid"] for e in products}
        assert all(end(back) <= e["ts"] for e in products)
        assert all(before["ts"] < end(e) for e in products)


def test_copies_and_pickles_of_blocks() -> None:
    model = Stack(MLP)
    x = mx.random.normal((*ROWS, 64))
    ane.convert(model, device=ENGINE, granularity="block")
    expected = model(x)
    twin = copy.deepcopy(model)
    assert type(twin.layers[0]) is type(model.layers[0])
    assert mx.array_equal(twin(x), expected)
    twin.layers[0].up.weight = twin.layers[0].up.weight * 2
    assert mx.array_equal(model(x), expected)
    again = pickle.loads(pickle.dumps(model))
    assert type(again.layers[1]) is type(model.layers[1])
    assert mx.array_equal(again(x), expected)


def test_a_pickle_loads_in_a_fresh_process(tmp_path: Any) -> None:
    model = llama.Model(TINY)
    ane.convert(model, device=ENGINE, granularity="block")
    file = tmp_path / "model.pickle"
    file.write_bytes(pickle.dumps(model))
    program = (
        "import pickle, sys\n"
        "model = pickle.loads(open(sys.argv[1], 'rb').read())\n"
        "print(type(model.layers[0]).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)], capture_output=True, text=True
    )
    assert done.stdout.strip() == "ANETransformerBlock", done.stderr


def test_options_of_blocks_are_checked() -> None:
    model = Stack(MLP)
    with pytest.raises(ValueError, match="granularity is 'blocks', need one of"):
        ane.convert(model, granularity="blocks")
    with pytest.raises(NotImplementedError, match="granularity 'block' got policy"):
        ane.convert(model, granularity="block", policy="frozen")
    assert type(model.layers[0]) is MLP


def test_overflow_is_computed_on_the_host() -> None:
    """A massive activation does not fit fp16; the call is placed, and right."""
    module = MLP()
    fun = ane.compile(lambda x: module(x), module, device=ENGINE)
    x = mx.random.normal((*ROWS, 64))
    x[0, 0, 0] = 1e5
    assert error(fun(x), module(x)) < 1e-6
    assert ane.counters()["placed_out_of_range"] == 1


def test_verify_compares_blocks() -> None:
    model, tokens = model_and_tokens()
    ane.convert(model, device=ENGINE, granularity="block")
    report = ane.verify(model, tokens, loss=loss)
    assert report.passed, str(report)
    checks = {c.path: c for c in report.layers}
    block = checks["model.layers.1"]
    assert (block.calls, block.verdict) == (1, "PASS")
    assert 0 < block.forward_error < 2e-3
    assert checks["model.layers.1.mlp.up_proj"].verdict == "not called"
    assert type(model.layers[0]).__name__ == "ANETransformerBlock"


def test_verify_sees_a_wrong_block(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_ane import blocks

    model, tokens = model_and_tokens()
    ane.convert(model, device=ENGINE, granularity="block")
    right = blocks.call
    monkeypatch.setattr(blocks, "call", lambda *a, **k: right(*a, **k) * 1.02)
    report = ane.verify(model, tokens, loss=loss)
    assert not report.passed
    failed = [c.path for c in report.layers if c.failed]
    assert "model.layers.0" in failed

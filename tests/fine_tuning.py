"""What the tests of `mlx-ane lora` share: a tiny model, data, runs of both commands."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from mlx_ane import cli

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import corpus
import gpt

mlx_lm_lora = pytest.importorskip("mlx_lm.lora")

KINDS = ["lora", "dora", "full", "qlora"]
ITERS = 6
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module", autouse=True)
def eager() -> Iterator[None]:
    """Without mx.compile: its C++ compiler takes longer than these tests."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Folders of a tiny random Llama, by whether it is quantised."""
    config = gpt.Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
    )
    mx.random.seed(0)
    model = gpt.GPT(config)
    folders = {}
    for quantized in (False, True):
        folder = tmp_path_factory.mktemp("model")
        facts = config.to_json()
        if quantized:
            facts["quantization"] = {"group_size": 32, "bits": 4}
            nn.quantize(model, **facts["quantization"])
        (folder / "config.json").write_text(json.dumps(facts))
        weights = dict(tree_flatten(model.parameters()))
        mx.save_safetensors(str(folder / "model.safetensors"), weights)
        corpus.save_tokenizer(folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings["chat_template"] = CHAT
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        folders[quantized] = folder
    return folders


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder as mlx-lm takes it: pieces of this file."""
    folder = tmp_path_factory.mktemp("data")
    text = Path(__file__).read_text()
    rows = [json.dumps({"text": text[i : i + 60]}) for i in range(0, 2400, 60)]
    for name, part in {"train": rows[8:], "valid": rows[:4], "test": rows[4:8]}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(part))
    return folder


def options(kind: str, models: dict[bool, Path], data: Path, out: Path) -> list[str]:
    """Flags that both commands know."""
    return [
        *("--model", str(models[kind == "qlora"]), "--data", str(data), "--train"),
        *("--fine-tune-type", kind.removeprefix("q"), "--adapter-path", str(out)),
        *("--iters", str(ITERS), "--batch-size", "4", "--num-layers", "2"),
        *("--steps-per-report", "1", "--learning-rate", "1e-4", "--save-every", "100"),
    ]


class Plain:
    """A run of mlx_lm.lora in plain MLX; also its callback."""

    def __init__(self, flags: list[str]) -> None:
        args = vars(mlx_lm_lora.build_parser().parse_args(flags))
        defaults = mlx_lm_lora.CONFIG_DEFAULTS
        args |= {k: v for k, v in defaults.items() if args.get(k) is None}
        args["lora_parameters"] = dict(defaults["lora_parameters"])
        config = types.SimpleNamespace(**args)
        self.train: list[float] = []
        np.random.seed(config.seed)
        self.model, tokenizer = mlx_lm_lora.load(config.model)
        train_set, valid_set, _ = mlx_lm_lora.load_dataset(config, tokenizer)
        mlx_lm_lora.train_model(config, self.model, train_set, valid_set, self)

    def on_train_loss_report(self, info: dict[str, Any]) -> None:
        self.train.append(info["train_loss"])

    def on_val_loss_report(self, info: dict[str, Any]) -> None:
        self.validation = info["val_loss"]


@pytest.fixture(scope="module")
def plain(
    models: dict[bool, Path], data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """plain(kind): the run and its adapter folder, each kind once."""
    runs: dict[str, tuple[Plain, Path]] = {}

    def run(kind: str) -> tuple[Plain, Path]:
        if kind not in runs:
            out = tmp_path_factory.mktemp(kind)
            runs[kind] = Plain(options(kind, models, data, out)), out
        return runs[kind]

    return run


def lora(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    """Runs `mlx-ane lora --json`; returns what it printed."""
    capsys.readouterr()
    status = cli.main(["lora", *flags, "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    return found

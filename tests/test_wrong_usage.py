"""Wrong usages of every command: one sentence that names file, line and key."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import DEVICES
from fine_tuning import data, eager, mlx_lm_lora, models  # noqa: F401

from mlx_ane import cli
from mlx_ane.commands import bench

TEXT = '{"text": "a line of text"}\n'
PAIR = '{"prompt": "a", "completion": "b"}\n'
TALK = '{"messages": [{"role": "user", "content": "a"}]}\n'
BINARY = bytes(range(256))


@dataclass
class Wrong:
    """A wrong usage.

    Attributes:
        args: The command, with {tmp}, {model}, {quantized} and {data} for folders.
        says: What the sentence must have.
        files: Content by name below {tmp}; None makes a folder.
        status: The exit status.
        early: Whether it is found before a model loads.
    """

    args: str
    says: str
    files: dict[str, str | bytes | None] = field(default_factory=dict)
    status: int = 1
    early: bool = True


def train(flags: str, says: str, **kwargs: Any) -> Wrong:
    """A run of lora that would train."""
    base = "lora --train --iters 2 --batch-size 4 --num-layers 2 --device cpu "
    base += "--adapter-path {tmp}/out "
    base += "" if "--model" in flags else "--model {model} "
    base += "" if "--data" in flags else "--data {data} "
    return Wrong(base + flags, says, **kwargs)


def yaml(content: str, says: str, **kwargs: Any) -> Wrong:
    """A run of lora with options of a file."""
    return train("-c {tmp}/a.yaml", says, files={"a.yaml": content}, **kwargs)


def rows(content: str | bytes, says: str, flags: str = "", **kwargs: Any) -> Wrong:
    """A run of lora on rows of one's own."""
    files = {"d/train.jsonl": content, **kwargs.pop("files", {})}
    return train(f"--data {{tmp}}/d {flags}", says, files=files, **kwargs)


OPTIONS = [
    # Enums of YAML and of flags
    yaml("fine_tune_type: DoRA", "a.yaml, line 1: fine_tune_type is 'DoRA', need one"),
    yaml("fine_tune_type: DoRA", "; did you mean 'dora'?"),
    yaml("seed: 1\nfine_tune_type: Full", "line 2: fine_tune_type is 'Full', need"),
    yaml("fine_tune_type: qlora", "need one of lora, dora, full; did you mean 'lora'?"),
    yaml("fine_tune_type: 'dora '", "is 'dora ', need one of lora, dora, full"),
    yaml("fine_tune_type: no", "fine_tune_type is False, need one of"),
    yaml("fine_tune_type: [lora]", "fine_tune_type is ['lora'], need one of"),
    yaml("optimizer: adamm", "optimizer is 'adamm', need one of adam, adamw"),
    yaml("ane: {attention: flash}", "line 1: ane.attention is 'flash', need one of"),
    yaml("ane:\n  policy: All", "line 2: ane.policy is 'All', need one of all, frozen"),
    yaml("ane: {objective: speed}", "ane.objective is 'speed', need one of time"),
    yaml("ane: {precision: hi}", "ane.precision is 'hi', need one of default"),
    yaml("ane: {fallback: warning}", "did you mean 'warn'?"),
    yaml("ane: {device: gpu}", "ane.device is 'gpu', need one of auto, ane"),
    yaml("ane: {devise: cpu}", "ane.devise is unknown, need one of device"),
    yaml("ane: {devise: cpu}", "did you mean 'device'?"),
    yaml("ane: cpu", "line 1: ane is 'cpu', need options with values"),
    yaml("ane: {predicate: '('}", "ane.predicate: '(' is no regular expression"),
    yaml("ane: {predicate: [1]}", "ane.predicate is [1], need a list of texts"),
    train("--fine-tune-type DoRA", "invalid choice: 'DoRA'", status=2),
    train("--device npu", "--device is 'npu', need one of auto, ane, emulated, cpu"),
    train("--device ane", "device 'ane' is not available here"),
    train("--attention flash", "invalid choice: 'flash'", status=2),
    # Booleans
    yaml("ane: {fused: 'no'}", "ane.fused is 'no', need true or false"),
    yaml("ane: {verify: 'no'}", "ane.verify is 'no', need true or false"),
    yaml("mask_prompt: 'off'", "line 1: mask_prompt is 'off', need true or false"),
    yaml("grad_checkpoint: 'false'", "grad_checkpoint is 'false', need true or false"),
    yaml("trust_remote_code: 1", "trust_remote_code is 1, need true or false"),
    yaml("train: 'yes'", "train is 'yes', need true or false"),
    # Numbers
    yaml("learning_rate: '1e-5'", "learning_rate is '1e-5', need a number of at least"),
    yaml("learning_rate: '1e-5'", "written without quotes"),
    yaml("learning_rate: fast", "learning_rate is 'fast', need a number"),
    yaml("learning_rate: .nan", "learning_rate is nan, need a number of at least 0"),
    yaml(
        "learning_rate: -1e-5", "learning_rate is -1e-05, need a number of at least 0"
    ),
    yaml("grad_accumulation_steps: 1.5", "is 1.5, need a whole number of at least 1"),
    yaml("max_seq_length: true", "max_seq_length is True, need a whole number"),
    yaml("max_seq_length: [8]", "max_seq_length is [8], need a whole number"),
    yaml("clear_cache_threshold: 2XB", "clear_cache_threshold is '2XB', need bytes"),
    train("--clear-cache-threshold big", "is 'big', need bytes, such as"),
    train("--seed -1", "--seed is -1, need a whole number of at least 0 and below"),
    train("--iters 0", "--iters is 0, need a whole number of at least 1"),
    train("--iters -1", "--iters is -1, need a whole number of at least 1"),
    train("--iters two", "invalid int value: 'two'", status=2),
    train("--batch-size 0", "--batch-size is 0, need a whole number of at least 1"),
    train("--num-layers 0", "--num-layers is 0, need a whole number of at least 1, or"),
    train("--num-layers -2", "--num-layers is -2"),
    train("--val-batches -2", "--val-batches is -2"),
    train("--test --test-batches 0", "--test-batches is 0"),
    train("--steps-per-report 0", "--steps-per-report is 0"),
    train("--steps-per-eval 0", "--steps-per-eval is 0"),
    train("--save-every 0", "--save-every is 0"),
    train("--max-seq-length 1", "--max-seq-length is 1, need a whole number of at"),
    train("--learning-rate nan", "--learning-rate is nan, need a number"),
    train("--grad-accumulation-steps 0", "--grad-accumulation-steps is 0"),
    train("--grad-accumulation-steps 3", "need at most iters, 2"),
    # Nested keys
    yaml(
        "lora_parameters: {rank: 0}", "lora_parameters.rank is 0, need a whole number"
    ),
    yaml(
        "lora_parameters: {rank: 4, alpha: 16}", "need also dropout, scale; mlx-lm has"
    ),
    yaml("lora_parameters: {rank: '4'}", "lora_parameters.rank is '4', need a whole"),
    yaml("lora_parameters: 4", "lora_parameters is 4, need options with values"),
    yaml(
        "lora_parameters:\n  rank: 4\n  scale: 1.0\n  dropout: 1.0",
        "line 4: lora_parameters.dropout is 1.0, need a number of at least 0 and",
    ),
    yaml("lora_parameters: {keys: q_proj}", "keys is 'q_proj', need a list of texts"),
    yaml("optimizer_config: {adam: {betta: 1}}", "betta is unknown, need one of betas"),
    yaml(
        "optimizer_config: {adam: {betas: [0.9]}}", "betas is [0.9], need a list of 2"
    ),
    yaml(
        "optimizer_config: {adam: {betas: [0.9, x]}}", "betas.1 is 'x', need a number"
    ),
    yaml(
        "optimizer_config: {adam: {eps: '1e-8'}}", "adam.eps is '1e-8', need a number"
    ),
    yaml(
        "optimizer_config: {adam: {learning_rate: 1}}", "adam.learning_rate is unknown"
    ),
    yaml("optimizer_config: {adam: {bias_correction: 'no'}}", "need true or false"),
    yaml(
        "optimizer_config: {adam: {state_dtype: float64}}", "need one of float32, float"
    ),
    yaml("optimizer_config: {adam: {max_norm: 0}}", "max_norm is 0, need a positive"),
    yaml(
        "optimizer_config: {adam: 1}", "optimizer_config.adam is 1, need options with"
    ),
    yaml(
        "ane: {fused: false}\noptimizer_config: {adam: {state_dtype: float32}}",
        "adam.state_dtype is unknown, need one of betas, eps, bias_correction",
    ),
    yaml("lr_schedule: cosine_decay", "lr_schedule is 'cosine_decay', need options"),
    yaml("lr_schedule: {name: cosine, arguments: [1]}", "lr_schedule.name is 'cosine'"),
    yaml("lr_schedule: {name: cosine_decay}", "has name, need also arguments"),
    yaml(
        "lr_schedule: {name: cosine_decay, arguments: [1e-5]}",
        "lr_schedule.arguments is [1e-05], need a list of init",
    ),
    yaml(
        "lr_schedule: {name: cosine_decay, arguments: 1e-5}",
        "lr_schedule.arguments is 1e-05, need a list of init",
    ),
    yaml(
        "lr_schedule:\n  name: cosine_decay\n  arguments: [1e-5, '9']",
        "line 3: lr_schedule.arguments.1 is '9', need a whole number",
    ),
    yaml("lr_schedule: {name: join_schedules, arguments: []}", "is 'join_schedules'"),
    yaml("hf_dataset: billsum", "hf_dataset is 'billsum', need options with values"),
    yaml("hf_dataset: {pth: a}", "hf_dataset has pth, need also path"),
    yaml("hf_dataset: [{path: 1}]", "hf_dataset.0.path is 1, need text"),
    yaml("hf_dataset: {path: a}", "hf_dataset needs the package datasets"),
    # Whole files and other kinds
    yaml("- 1", "a.yaml is [1], need options with values"),
    yaml("", "a.yaml is None, need options with values"),
    yaml("a: [1", "a.yaml is no YAML: while parsing"),
    yaml(BINARY, "a.yaml is no YAML"),
    yaml("project_name: 5", "project_name is 5, need text"),
    yaml("report_to: wandb", "report_to is 'wandb', but wandb is not installed; run"),
    train("-c {tmp}/no.yaml", "no.yaml', need a file: No such file or directory"),
    train("-c {tmp}", "need a file: Is a directory"),
    train("--report-to wandb", "--report-to is 'wandb', but wandb is not installed"),
    train("--report-to wendb", "need one or more of wandb, swanlab, by comma"),
    train(
        "--iterz 5",
        "unrecognized arguments: --iterz 5; did you mean --iters?",
        status=2,
    ),
    Wrong("lora --model {model} --data {data}", "got neither --train nor --test"),
]

FILES = [
    # Data
    train(
        "--data {tmp}/no", "data is '{tmp}/no', no folder here; it needs the package"
    ),
    train("--data {tmp}/a", "a file, need a folder with train.jsonl", files={"a": ""}),
    train("--data {tmp}", "{tmp}/train.jsonl is missing or empty, need at least the"),
    rows("", "d/train.jsonl is missing or empty"),
    rows(TEXT * 3, "d/train.jsonl has 3 rows, need at least the batch_size, 4"),
    rows(TEXT * 4, "d/valid.jsonl has 1 rows", files={"d/valid.jsonl": TEXT}),
    rows(TEXT * 4, "d/test.jsonl is missing or empty", "--test"),
    rows(TEXT + "\n" + TEXT * 4, "d/train.jsonl, line 2 is empty"),
    rows(TEXT * 2 + "{'text': 1}\n", "d/train.jsonl, line 3 is no JSON: Expecting"),
    rows(TEXT + "[1]\n", "d/train.jsonl, line 2 is [1], need an object with keys"),
    rows(TEXT * 2 + '{"txt": ""}\n', "line 3 has no key 'text', which the first line"),
    rows('{"question": "a"}\n', "line 1 has the keys question, need text, or messages"),
    rows('{"text": 5}\n', "line 1: text is 5, need text"),
    rows(PAIR + '{"prompt": "a"}\n', "line 2 has no key 'completion'"),
    rows(PAIR + '{"prompt": "a", "completion": null}\n', "completion is null, need"),
    rows('{"messages": "a"}\n', 'line 1: messages is "a", need a list of messages'),
    rows('{"messages": []}\n', "line 1: messages is [], need a list of messages"),
    rows(TALK + '{"messages": [{"content": "a"}]}\n', "line 2: messages is [{"),
    rows(
        TEXT * 4,
        "line 1 has text, which has no prompt for mask_prompt",
        "--mask-prompt",
    ),
    rows(BINARY, "d/train.jsonl, line 1 is no JSON"),
    rows(TEXT * 4, "d/valid.jsonl: Is a directory", files={"d/valid.jsonl": None}),
    rows(
        TEXT * 4 + '{"text": ""}\n',
        "d/train.jsonl, line 5 has an empty text: IndexError",
        early=False,
    ),
    rows(
        PAIR * 4,
        "d/train.jsonl, line 1: ",
        "--model {tmp}/m",
        early=False,
        files={"m": "{model} without chat_template"},
    ),
    # Models
    train("--model /no/model", "model is '/no/model', which does not exist"),
    train("--model {tmp}/a", "a file, need its folder", files={"a": ""}),
    train("--model {tmp}", "{tmp}/config.json is missing"),
    train("--model {tmp}", "config.json is no JSON", files={"config.json": "{"}),
    train("--model {tmp}", "config.json is no JSON", files={"config.json": BINARY}),
    train("--model {tmp}", "must map names to values", files={"config.json": "[]"}),
    train("--model {tmp}", "which has no weights", files={"config.json": "{}"}),
    train(
        "--model {tmp}",
        "which has no tokenizer",
        files={"config.json": "{}", "model.safetensors": ""},
    ),
    train(
        "--model {tmp}/m",
        "m' cannot be loaded: ",
        early=False,
        files={"m": "{model} with config.json", "m/config.json": '{"a": 1}'},
    ),
    train(
        "--model {tmp}/m",
        "m' cannot be loaded: ",
        early=False,
        files={"m": "{model} with", "m/config.json": '{"model_type": "lama"}'},
    ),
    train(
        "--model {tmp}/m",
        "m' cannot be loaded: ",
        early=False,
        files={"m": "{model} with", "m/model.safetensors": BINARY},
    ),
    train(
        "--model {tmp}/m",
        "m' cannot be loaded: ",
        early=False,
        files={"m": "{model} with", "m/tokenizer.json": "{"},
    ),
    # What depends on the model
    train("--num-layers 9", "num_layers is 9, but the model has 2", early=False),
    train(
        "--num-layers 2 --model {quantized} --fine-tune-type full",
        "is quantised to 4 bits, which no optimizer trains",
        early=False,
    ),
    yaml(
        "lora_parameters: {rank: 4, scale: 1, dropout: 0, keys: [attn.q_proj]}",
        "keys has attn.q_proj, need names of layers such as self_attn.q_proj",
        early=False,
    ),
    yaml(
        "lora_parameters: {rank: 4, scale: 1, dropout: 0, keys: [self_attn.qproj]}",
        "did you mean 'self_attn.q_proj'?",
        early=False,
    ),
    yaml(
        "lora_parameters: {rank: 4, scale: 1, dropout: 0, keys: []}",
        "keys has nothing",
        early=False,
    ),
    yaml(
        "lora_parameters: {rank: 4, scale: 1, dropout: 0, keys: [input_layernorm]}",
        "do not fit the model: Can't convert layer of type RMSNorm",
        early=False,
    ),
    # Adapters
    train(
        "--adapter-path {tmp}/a", "a', which is a file, need a folder", files={"a": ""}
    ),
    train(
        "--adapter-path {tmp}/a/b", "is in {tmp}/a, which is no folder", files={"a": ""}
    ),
    train(
        "--resume-adapter-file {tmp}/no", "resume_adapter_file is '{tmp}/no', need a"
    ),
    train("--resume-adapter-file {tmp}", "resume_adapter_file is '{tmp}', need a file"),
    train(
        "--resume-adapter-file {tmp}/a.safetensors",
        "need weights: ",
        files={"a.safetensors": BINARY},
        early=False,
    ),
    train(
        "--resume-adapter-file {tmp}/a.txt",
        "need weights: ",
        files={"a.txt": "a"},
        early=False,
    ),
    train(
        "--resume-adapter-file {model}/model.safetensors",
        "more this run does not train",
        early=False,
    ),
    Wrong(
        "lora --test --model {model} --data {data} --adapter-path {tmp}",
        "{tmp}/adapter_config.json is missing; train adapters first",
    ),
    Wrong(
        "lora --test --model {model} --data {data} --adapter-path {tmp}",
        "adapters.safetensors is missing",
        files={"adapter_config.json": "{}"},
    ),
    Wrong(
        "lora --test --model {model} --data {data} --adapter-path {tmp}",
        "adapter_config.json is no JSON",
        files={"adapter_config.json": "{", "adapters.safetensors": ""},
    ),
    Wrong(
        "lora --test --model {model} --data {data} --adapter-path {tmp}",
        "adapters '{tmp}' do not fit: ",
        files={"adapter_config.json": "{}", "adapters.safetensors": BINARY},
        early=False,
    ),
]

OTHERS = [
    Wrong("", "the following arguments are required: command", status=2),
    Wrong("docter", "'docter' (choose from", status=2),
    Wrong(
        "doctor --jsn", "unrecognized arguments: --jsn; did you mean --json?", status=2
    ),
    Wrong("doctor now", "unrecognized arguments: now", status=2),
    Wrong("bench steps", "invalid choice: 'steps'", status=2),
    Wrong("bench --rounds 0", "--rounds is 0, need 1 or more"),
    Wrong("bench --threads 0", "--threads is 0, need 1 or more"),
    Wrong("bench --rounds few", "invalid int value: 'few'", status=2),
    Wrong(
        "bench --against jax", "--against has 'jax', need --against among torch, mlx"
    ),
    Wrong("bench --against nump", "did you mean 'numpy'?"),
    Wrong(
        "bench --against torch", "has no torch (ModuleNotFoundError: No module named"
    ),
    Wrong("bench --against torch --torch-python {tmp}/no", "No such file or directory"),
    Wrong(
        "bench --against mkl --mkl {tmp}/no", "--mkl is '{tmp}/no', which is not a file"
    ),
    Wrong("bench --only nothing", "--only has 'nothing', which is in no case of all"),
    Wrong("bench pack --only dispatch", "which is in no case of pack"),
    Wrong("bench --device npu", "device is 'npu', need one of"),
    Wrong("bench --device ane", "device 'ane' is not available here"),
    Wrong("bench --plot a.xyz", "--plot is 'a.xyz', need a file that ends with .png"),
    Wrong("bench --plot {tmp}/no/a.png", "is in {tmp}/no, which does not exist"),
    Wrong("bench --plot {tmp}", "--plot is '{tmp}', which is a folder, need a file"),
    Wrong("bench --markdown {tmp}/no/a.md", "is in {tmp}/no, which does not exist"),
    Wrong("plan", "the following arguments are required: model", status=2),
    Wrong("plan {tmp}", "{tmp}/config.json is missing"),
    Wrong("plan {tmp}/no/such/model", "which does not exist; give a folder or an id"),
    Wrong("plan {tmp}/a", "a file, need its folder", files={"a": ""}),
    Wrong("plan {tmp}", "config.json is no JSON", files={"config.json": "{"}),
    Wrong("plan {tmp}", "cannot be loaded: ", files={"config.json": "{}"}),
    Wrong(
        "plan {tmp}",
        "cannot be loaded: ",
        files={"config.json": '{"model_type": "lama"}'},
    ),
    Wrong(
        "plan {tmp}",
        "cannot be loaded: ",
        files={"config.json": '{"model_type": "llama"}'},
    ),
    Wrong("plan {model} --chip M9", 'got chip "M9", need one of h13'),
    Wrong("plan {model} --batch 0", "--batch is 0, need 1 or more"),
    Wrong("plan {model} --seq 8 -1", "--seq is [8, -1], need 1 or more"),
    Wrong("plan {model} --seq", "expected at least one argument", status=2),
    Wrong("mil", "the following arguments are required: file", status=2),
    Wrong("mil {tmp}/no.mil", "{tmp}/no.mil: No such file or directory"),
    Wrong("mil {tmp}", "{tmp}/model.mil: No such file or directory"),
    Wrong("mil {tmp}/a.mil", "a.mil: ", files={"a.mil": ""}),
    Wrong("mil {tmp}/a.mil", "a.mil: ", files={"a.mil": BINARY}),
    Wrong("mil {tmp}/a.mil", "a.mil: ", files={"a.mil": "program(1.3) {\n  func(\n}"}),
    Wrong("mil {mil}/attention.mil --check h99", "h99"),
    Wrong("mil {mil}/attention.mil --check h13 --macos tiger", "tiger"),
    Wrong("mil {mil}/attention.mil --check h13 --allow anything", "anything"),
    Wrong("mil {mil}/attention.mil --text ios17", "invalid choice", status=2),
    Wrong("mil {mil}/attention.mil --run --inputs ones", "invalid choice", status=2),
    Wrong("mil {mil}/attention.mil --graph {tmp}/a.png", "need .dot or .svg"),
    Wrong(
        "mil {mil}/attention.mil --graph {tmp}/no/a.dot", "{tmp}/no/a.dot: No such file"
    ),
    Wrong(
        "mil {mil}/conv_ios18.mil --run",
        "weights/w.bin of @model_path/weights/w.bin is",
    ),
    Wrong(
        "mil {mil}/conv_ios18.mil --run --weights {tmp}",
        "w",
        files={"weights/w.bin": BINARY},
    ),
    Wrong("mil {mil}/compiled.mil --run", "input x: shape [1, -1, 8] is unknown"),
]


@pytest.fixture
def folders(models, data, tmp_path) -> dict[str, str]:  # noqa: F811
    return {
        "tmp": str(tmp_path),
        "model": str(models[False]),
        "quantized": str(models[True]),
        "data": str(data),
        "mil": str(Path(__file__).parent / "data" / "mil"),
    }


def make(files: dict[str, str | bytes | None], folders: dict[str, str]) -> None:
    for name, content in files.items():
        file = Path(folders["tmp"]) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            file.mkdir()
        elif isinstance(content, bytes):
            file.write_bytes(content)
        elif content.startswith("{model} with"):
            shutil.copytree(folders["model"], file)
            if content.endswith("chat_template"):
                settings = (file / "tokenizer_config.json").read_text()
                settings = settings.replace('"chat_template"', '"chat_other"')
                (file / "tokenizer_config.json").write_text(settings)
        else:
            file.write_text(content)


@pytest.mark.parametrize(
    "wrong", [pytest.param(w, id=w.says) for w in OPTIONS + FILES + OTHERS]
)
def test_wrong_usage(wrong: Wrong, folders, capsys, monkeypatch) -> None:
    if "'ane' is not available" in wrong.says and "ane" in DEVICES:
        pytest.skip("it is, over the doubles")
    make(wrong.files, folders)

    def load(*args: Any, **kwargs: Any) -> None:
        pytest.fail("it loaded the model first")

    if wrong.early:
        monkeypatch.setattr(mlx_lm_lora, "load", load)
    arguments = shlex.split(wrong.args.format(**folders))
    try:
        status = cli.main(arguments)
    except SystemExit as error:
        status = error.code
    out, err = capsys.readouterr()
    assert status == wrong.status, (out, err)
    assert wrong.says.replace("{tmp}", folders["tmp"]) in err
    if status == 1:
        line = err.strip().splitlines()[-1]
        assert line.startswith(f"mlx-ane {arguments[0]}: ")
        assert line.endswith((".", "?")) or "; run: pip install" in line
    assert not (Path(folders["tmp"]) / "out").exists()


def test_a_plot_needs_matplotlib_before_it_measures(monkeypatch, capsys) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str, *args: Any) -> Any:
        return None if name == "matplotlib" else real(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(bench, "Sides", lambda *args: pytest.fail("it measures"))
    assert cli.main(["bench", "--small", "--plot", "a.png"]) == 1
    assert "run: pip install 'mlx-ane[plot]'" in capsys.readouterr().err


def test_bench_writes_what_it_found_when_interrupted(monkeypatch, capsys) -> None:
    def measure(cases, sides, rounds):
        yield bench.bench.Row("pack", cases[0].name, "memcpy", None, True, [1.0])
        raise KeyboardInterrupt

    monkeypatch.setattr(bench.bench, "measure", measure)
    assert cli.main(["bench", "pack", "--small", "--against", ""]) == 130
    out, err = capsys.readouterr()
    assert "memcpy" in out and "the last case has fewer rounds" in out
    assert err.endswith("interrupted; what was measured is above\n")


def test_lora_without_mlx_lm(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "mlx_lm.lora", None)
    with pytest.raises(SystemExit) as error:
        cli.main(["lora"])
    assert error.value.code == 2
    assert "mlx-lm is not installed; run: pip install" in capsys.readouterr().err

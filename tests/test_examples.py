"""The examples: what they promise, at sizes that take seconds."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from conftest import DEVICES
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from processes import free_port

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))

sys.path.insert(0, str(ROOT / "tools"))

import checkpoint  # noqa: E402
import compare  # noqa: E402
import corpus  # noqa: E402
import gpt  # noqa: E402
import train_gpt  # noqa: E402

TINY = [
    *("--hidden-size", "32", "--layers", "2", "--heads", "2", "--kv-heads", "1"),
    *("--intermediate-size", "64", "--length", "32", "--batch-size", "4"),
    *("--plain-steps", "0", "--sample", "0"),
]
CONFIG = gpt.Config(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=64,
    max_position_embeddings=32,
)


def command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(EXAMPLES / name), *map(str, arguments)]


def run(name: str, *arguments: object, fails: bool = False) -> str:
    """Runs an example to its end; returns what it printed."""
    done = subprocess.run(
        command(name, *arguments), capture_output=True, text=True, timeout=300
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def train(out: Path, *arguments: object, fails: bool = False) -> str:
    return run("train_gpt.py", "--out", out, *TINY, *arguments, fails=fails)


def losses(out: Path) -> list[float]:
    arrays, _ = checkpoint.load(out / "checkpoint.safetensors")
    return arrays["losses"].tolist()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A tiny GPT trained for 24 steps on the emulated device, and the output."""
    out = tmp_path_factory.mktemp("gpt")
    return out, train(out, "--steps", 24, "--save-every", 4, "--learning-rate", 1e-2)


def test_digits_reach_their_goal() -> None:
    printed = run("digits.py", "--epochs", 15)
    accuracy = float(re.search(r"accuracy (\S+)", printed).group(1))
    assert accuracy >= 0.97
    assert "3 of 3 layers, " in printed
    assert re.search(r"^fallbacks +0$", printed, re.M)


def test_digits_below_goal_fail() -> None:
    printed = run("digits.py", "--epochs", 1, fails=True)
    assert "after 1 epochs is below the goal of 0.97; the default of 30" in printed


def test_a_missing_extra_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sklearn.py").write_text("import no_such_module")
    path = [tmp_path, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "digits.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "digits.py: no_such_module is not installed; run: pip install 'mlx-ane[demo]'"
    ]


def test_gpt_is_mlx_lms_llama() -> None:
    from mlx_lm.models.llama import Model, ModelArgs

    mx.random.seed(0)
    ours = gpt.GPT(CONFIG)
    theirs = Model(ModelArgs.from_dict(CONFIG.to_json()))
    theirs.load_weights(tree_flatten(ours.parameters()), strict=True)
    tokens = mx.random.randint(0, 256, (2, 16))
    error = mx.abs(ours(tokens) - theirs(tokens)).max().item()
    assert error < 1e-5


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"hidden_size": 30, "num_attention_heads": 4}, ["30", "multiple of 8"]),
        ({"num_key_value_heads": 4}, ["num_key_value_heads, 4"]),
    ],
)
def test_gpt_refuses_sizes(wrong: dict[str, int], names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"\[gpt\.Config\]") as error:
        gpt.Config(**wrong)
    assert all(name in str(error.value) for name in names)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    from mlx_lm.tokenizer_utils import load

    folder = tmp_path_factory.mktemp("tokenizer")
    corpus.save_tokenizer(folder)
    return load(folder)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_characters="\0", codec="utf-8")))
def test_tokens_are_bytes(tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokens == list(text.encode())
    assert tokenizer.decode(tokens) == text


def test_end_of_text_is_token_zero(tokenizer) -> None:
    assert tokenizer.encode(f"a{corpus.END_OF_TEXT}b") == [97, 0, 98]
    assert tokenizer.eos_token_ids == {0}


def test_held_out_files_are_not_trained_on() -> None:
    texts = [bytes([65 + i]) * 300 for i in range(20)]
    data = corpus.Corpus(texts)
    assert set(np.unique(data.valid)) == {0, 65, 75}
    assert set(np.unique(data.train)) == {0, *range(65, 85)} - {65, 75}


def test_batch_is_a_function_of_its_step() -> None:
    data = corpus.Corpus([os.urandom(400).replace(b"\0", b"1") for _ in range(10)])
    batch = data.batch(3, 4, 16, seed=1)
    assert batch.shape == (4, 17)
    assert mx.array_equal(batch, data.batch(3, 4, 16, seed=1))
    assert not mx.array_equal(batch, data.batch(4, 4, 16, seed=1))
    assert not mx.array_equal(batch, data.batch(3, 4, 16, seed=2))


def test_corpus_needs_texts_to_hold_out() -> None:
    with pytest.raises(ValueError, match="got 9 texts, need 10"):
        corpus.Corpus([b"x" * 300] * 9)


def test_checkpoint_survives_a_kill_while_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, {"w": mx.ones(3)}, {"step": 1})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"w": mx.zeros(3)}, {"step": 2})
    arrays, facts = checkpoint.load(path)
    assert facts == {"step": 1}
    assert arrays["w"].tolist() == [1, 1, 1]


def test_random_state_is_part_of_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    model = gpt.GPT(CONFIG)
    saved = train_gpt.Run(model, optim.AdamW(1e-3), [])
    mx.random.seed(2**40 + 5)
    mx.random.normal((3,))
    saved.save(path, {})
    expected = mx.random.normal((3,)).tolist()
    mx.random.seed(1)
    saved.restore(path, {})
    assert mx.random.normal((3,)).tolist() == expected


@pytest.mark.parametrize("kept", [0, 5, 100, -10])
def test_damaged_checkpoint_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, {"w": mx.ones(1000)}, {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="no whole checkpoint"):
        checkpoint.load(path)


def test_foreign_safetensors_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    mx.save_safetensors(str(path), {"w": mx.ones(3)})
    with pytest.raises(ValueError, match="no whole checkpoint"):
        checkpoint.load(path)


def test_gpt_trains_on_the_emulated_device(trained: tuple[Path, str]) -> None:
    out, printed = trained
    before, after = map(float, re.search(r"loss (\S+) -> (\S+) nats", printed).groups())
    assert after < before - 1
    assert "15 of 15 layers, " in printed
    assert re.search(r"^fallbacks +0$", printed, re.M)
    assert float(re.search(r"against fp32 +(\S+)", printed).group(1)) < 5e-3
    assert (out / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert len(losses(out)) == 24


def test_model_folder_loads_without_mlx_ane(trained: tuple[Path, str]) -> None:
    out, _ = trained
    program = """
import json, sys
sys.modules["mlx_ane"] = None
from mlx_lm import generate, load
model, tokenizer = load(sys.argv[1])
text = generate(model, tokenizer, "def ", max_tokens=8)
print(json.dumps([type(model).__module__, len(text)]))
"""
    printed = subprocess.run(
        [sys.executable, "-c", program, str(out / "model")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    module, length = json.loads(printed.splitlines()[-1])
    assert module == "mlx_lm.models.llama"
    assert length > 0
    saved = mx.load(str(out / "model" / "model.safetensors"))
    arrays, _ = checkpoint.load(out / "checkpoint.safetensors")
    for name, array in tree_flatten(arrays["model"]):
        assert mx.array_equal(saved.pop(name), array), name
    assert not saved


def test_killed_run_resumes_bit_identically(
    trained: tuple[Path, str], tmp_path: Path
) -> None:
    whole, _ = trained
    arguments = ["--steps", 24, "--save-every", 4, "--learning-rate", 1e-2]
    path = tmp_path / "checkpoint.safetensors"
    process = subprocess.Popen(
        command("train_gpt.py", "--out", tmp_path, *TINY, *arguments),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(losses(tmp_path))
    assert done < 24, "the run ended before it was killed"
    printed = train(tmp_path, "--resume", *arguments)
    assert f"resumed at step {done}" in printed
    assert losses(tmp_path) == losses(whole)
    ours, theirs = (
        dict(tree_flatten(checkpoint.load(p / "checkpoint.safetensors")[0]))
        for p in (tmp_path, whole)
    )
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert mx.array_equal(ours[name], theirs[name]), name


def test_resume_refuses_other_settings(trained: tuple[Path, str]) -> None:
    out, _ = trained
    printed = train(out, "--resume", "--steps", 30, "--seed", 7, fails=True)
    assert "another learning_rate, seed, steps" in printed.splitlines()[-1]


def launch(out: Path, ranks: int, *arguments: object) -> subprocess.Popen[str]:
    """Starts train_gpt.py in several processes under mlx.launch."""
    return subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("mlx.launch")), "-n", str(ranks)),
            *("--starting-port", str(free_port()), "--python", sys.executable),
            *(str(EXAMPLES / "train_gpt.py"), "--out", str(out), *TINY),
            *map(str, arguments),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_together_give_the_losses_of_one(
    trained: tuple[Path, str], tmp_path: Path, ranks: int
) -> None:
    out, _ = trained
    arguments = ["--steps", 24, "--save-every", 24, "--learning-rate", 1e-2]
    printed, _ = launch(tmp_path, ranks, *arguments).communicate(timeout=300)
    assert printed.count("held-out loss") == 1, printed
    np.testing.assert_allclose(losses(tmp_path), losses(out), rtol=2e-3)
    # The first step has no history: only the order of fp32 sums differs.
    assert losses(tmp_path)[0] == pytest.approx(losses(out)[0], rel=1e-6)


def test_two_processes_by_blocks_give_the_losses_of_layers(
    trained: tuple[Path, str], tmp_path: Path
) -> None:
    arguments = ["--steps", 24, "--save-every", 24, "--learning-rate", 1e-2]
    arguments += ["--granularity", "block"]
    printed, _ = launch(tmp_path, 2, *arguments).communicate(timeout=300)
    assert re.search(r"^fallbacks +0$", printed, re.M), printed
    np.testing.assert_allclose(losses(tmp_path), losses(trained[0]), rtol=5e-3)


def test_lost_process_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    job = launch(tmp_path, 2, "--steps", 100_000, "--save-every", 5)
    while not path.exists():
        assert job.poll() is None
        time.sleep(0.05)
    os.kill(ranks_of(job)[1], signal.SIGKILL)
    printed, _ = job.communicate(timeout=60)
    # mlx.launch names it, and may end the others before they can complain.
    assert "exited with code -9" in printed
    assert "held-out loss" not in printed


def ranks_of(job: subprocess.Popen[str]) -> list[int]:
    """Process ids of the training processes under mlx.launch, in order of rank."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(job.pid)], capture_output=True, text=True
    )
    return sorted(map(int, listed.stdout.split()))


def test_uneven_batch_is_refused(tmp_path: Path) -> None:
    printed, _ = launch(tmp_path, 3, "--steps", 2).communicate(timeout=60)
    assert "--batch-size is 4, but it must be a multiple of" in printed


@pytest.mark.parametrize("granularity", ["layer", "block"])
def test_lora_trains_adapters_for_plain_mlx_lm(
    trained: tuple[Path, str], tmp_path: Path, granularity: str
) -> None:
    model = trained[0] / "model"
    sizes = ["--length", 32, "--batch-size", 4, "--sequences", 64, "--rank", 4]
    printed = run(
        *("lora.py", "--model", model, "--out", tmp_path, "--iters", 30, *sizes),
        *("--granularity", granularity),
    )
    before, after = map(
        float, re.search(r"^held-out loss (\S+) -> (\S+)", printed, re.M).groups()
    )
    plain, here = map(
        float, re.search(r"^plain .* loss (\S+) \(here (\S+)\)", printed, re.M).groups()
    )
    assert after < before - 0.1
    # The trainer reported `after` one step before its last.
    assert plain == pytest.approx(here, rel=5e-3)
    assert plain == pytest.approx(after, rel=5e-2)
    assert re.search(r"^fallbacks +0$", printed, re.M)
    adapters = mx.load(str(tmp_path / "adapters.safetensors"))
    layers = [name for name in adapters if name.endswith("lora_a")]
    assert len(adapters) == 2 * len(layers) == 2 * 2 * 7


def test_chat_learns_and_fuses(trained: tuple[Path, str], tmp_path: Path) -> None:
    printed = run(
        *("chat.py", "--model", trained[0] / "model", "--out", tmp_path),
        *("--iters", 60, "--learning-rate", 5e-3),
    )
    plain = re.sub(r"\x1b\[[\d;]*m", "", printed)
    losses = [float(x) for x in re.findall(r"^ +\d+ +(\d\.\d+)", plain, re.M)]
    assert len(losses) == 3 and losses[-1] < losses[0] - 0.1
    assert plain.count("\n> ") == 5
    assert re.search(r"plain MLX answers \d of 5 questions as taught", plain)
    assert re.search(r"input tokens: int32 \[1, 64\]", plain)
    (error,) = re.findall(r"relative error against MLX: ([\d.e-]+)", plain)
    assert float(error) < 5e-3
    assert (tmp_path / "chat.mlpackage" / "Manifest.json").is_file()
    weights = mx.load(str(tmp_path / "model.safetensors"))
    base = mx.load(str(trained[0] / "model" / "model.safetensors"))
    assert set(weights) == set(base)
    changed = [n for n in base if not mx.array_equal(base[n], weights[n]).item()]
    assert len(changed) == 14  # all products of both layers have their adapters


def test_interrupted_training_says_how_to_go_on(tmp_path: Path) -> None:
    for save_every, says in [
        (2, "with --resume goes on from step"),
        (10**6, "no check"),
    ]:
        out = tmp_path / str(save_every)
        process = subprocess.Popen(
            command(
                *("train_gpt.py", "--out", out, *TINY),
                *("--steps", 100000, "--save-every", save_every),
            ),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            cwd=tmp_path,
        )
        told = ""
        while "8/100000" not in told:  # tqdm's bar
            told += process.stderr.read(1)
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1]
        assert process.returncode == 130
        assert says in rest.splitlines()[-1] and "Traceback" not in rest


@pytest.mark.slow
def test_held_out_loss_is_that_of_plain_mlx() -> None:
    sizes = ["--hidden-size", "64", "--layers", "2", "--steps", "100"]
    found = compare.compare_training(
        ["cpu", "emulated"], [*compare.TRAINING_SIZES, *sizes]
    )
    mx.enable_compile()
    plain = found["losses, nats per byte"]["mlx"]
    assert plain["after"] < plain["before"] - 2
    differences = found["relative difference"]
    assert differences["cpu"] < 1e-3
    # Rounded by the engine, yet no further off than its fp16.
    assert 1e-9 < differences["emulated"] < 1e-2


@pytest.mark.slow
def test_whole_demo(tmp_path: Path) -> None:
    """The commands of `make demo`, in the environment of the tests."""
    recipe = subprocess.run(
        ["make", "--dry-run", "--old-file", ".venv/.demo", "demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for script, arguments in re.findall(r"examples/(\S+\.py)(.*)", recipe):
        printed = run(script, *arguments.replace("build/demo", str(tmp_path)).split())
        assert re.search(r"^fallbacks +0$", printed, re.M)
    assert (tmp_path / "lora" / "adapters.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["digits.py", "--epochs", "0"], "argument --epochs: got 0, need 1 or more"),
        (["digits.py", "--device", "ane"], "device 'ane' is not available here"),
        (["lora.py"], "build/gpt/model is missing; run examples/train_gpt.py first"),
        (["lora.py", "--rank", "0"], "argument --rank: got 0, need 1 or more"),
        (["train_gpt.py", "--heads", "5"], "hidden_size is 192, but with 5 heads"),
        (["train_gpt.py", "--length", "100000000"], "need less"),
        (["train_gpt.py", "--seed", "-1"], "argument --seed: got -1, need 0 or more"),
        (["digits.py", "--seed", str(2**64)], "need 0 or more"),
        (["chat.py"], "build/gpt/model is missing; run examples/train_gpt.py first"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], says: str, tmp_path) -> None:
    if "'ane' is not available" in says and "ane" in DEVICES:
        pytest.skip("it is, over the doubles")
    file, *flags = arguments
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / file), *flags],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode in (1, 2)
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr

"""Documentation is code: every block of every page runs, on the emulated device.

    python tests/test_docs.py docs/quickstart.md      # run one page
    python tests/test_docs.py --list                  # blocks that are not run, and why
    python tests/test_docs.py --write docs/notebook.ipynb   # store its outputs

In a page, `python` and `sh` blocks run in order, Python in one namespace a page and
all in one empty folder. A `text` block under `<!-- output -->` is what the block
before it prints, `...` matching anything. `<!-- not run: REASON -->` leaves a block
out; the reasons are those of NOT_RUN.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import doctest
import importlib
import io
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "examples/README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "docs").glob("*.ipynb")),
    ]
    if path.exists()
]

#: Why a block may be left out; blocks that take minutes run under `-m slow`.
NOT_RUN = {
    "needs a Mac": "uses the Neural Engine",
    "needs more machines": "runs over several hosts",
    "takes minutes": "run by `pytest -m slow`",
    "installs": "changes the environment or builds from source",
    "downloads": "fetches a model",
    "sketch": "shows a form, with names that a reader fills in",
}
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

FENCE = re.compile(
    r"(?:^ *<!-- (?P<mark>[^\n]*?) -->\n+)?"
    r"^(?P<indent> *)```(?P<kind>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)


@dataclass
class Block:
    """A code block of a page, and what it must print."""

    kind: str
    source: str
    line: int
    skip: str = ""
    output: str | None = None


def blocks_of(page: str) -> list[Block]:
    """The code blocks of a Markdown page or a notebook, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".ipynb"):
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
        return [Block("python", "".join(c["source"]), i) for i, c in enumerate(cells)]
    found: list[Block] = []
    for match in FENCE.finditer(text):
        mark, kind = match["mark"] or "", match["kind"]
        source = textwrap.dedent(match["body"])
        if mark == "output":
            found[-1].output = source
        elif kind in ("python", "sh"):
            line = text.count("\n", 0, match.start("kind")) + 1
            skip = mark.removeprefix("not run: ") if "not run: " in mark else ""
            found.append(Block(kind, source, line, skip))
    return found


# -- running one page, in a process of its own ------------------------------------


def run_page(page: str, slow: bool) -> int:
    """Run a page's blocks here; print what differs; the number of failures."""
    names: dict[str, Any] = {}
    failures = 0
    for block in blocks_of(page):
        if block.skip and not (slow and block.skip == "takes minutes"):
            continue
        try:
            got = run_shell(block.source) if block.kind == "sh" else ""
            if block.kind == "python":
                got, _ = run_python(block.source, names)
        except Exception as error:
            got, failures = "", failures + 1
            print(f"{page}:{block.line}: {type(error).__name__}: {error}")
            continue
        if block.output is not None and not matches(block.output, got):
            failures += 1
            print(f"{page}:{block.line}: need\n{block.output}\ngot\n{got}")
    return failures


def matches(expected: str, got: str) -> bool:
    """Whether an output is as written, up to blanks and `...`."""
    return doctest.OutputChecker().check_output(expected, got, OPTIONS)


def run_python(source: str, names: dict[str, Any]) -> tuple[str, Any]:
    """Run Python; what it prints, and the value of its last expression."""
    source = re.sub(r"^%.*$", "", source, flags=re.MULTILINE)  # IPython's magic
    tree = ast.parse(source)
    last = (
        tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<docs>", "exec"), names)
        value = None
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "<docs>", "eval"), names)
    return printed.getvalue(), value


def run_shell(source: str) -> str:
    """Run shell commands; what they print."""
    done = subprocess.run(["sh", "-euc", source], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


@contextlib.contextmanager
def workspace() -> Any:
    """An empty folder with links to the repository; `mlx-ane` and `python` on PATH."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for entry in ROOT.iterdir():
            # Not mlx_ane: the package that is installed is what readers have.
            if not entry.name.startswith(".") and entry.name not in (
                "mlx_ane",
                "build",
            ):
                (folder / entry.name).symlink_to(entry)
        tools = folder / "bin"
        tools.mkdir()
        for command, module in {"mlx-ane": "-m mlx_ane", "python": ""}.items():
            script = tools / command
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
            script.chmod(0o755)
        os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"
        back = Path.cwd()
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(back)


def write_notebook(page: str) -> None:
    """Run a notebook and store text and figures as its outputs."""
    book = json.loads((ROOT / page).read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = [c for c in book["cells"] if c["cell_type"] == "code"]
    for count, cell in enumerate(cells, 1):
        printed, value = run_python("".join(cell["source"]), names)
        cell["execution_count"], cell["outputs"] = count, []
        if printed:
            text = printed.splitlines(keepends=True)
            cell["outputs"].append(
                {"output_type": "stream", "name": "stdout", "text": text}
            )
        if hasattr(value, "savefig"):
            image = io.BytesIO()
            value.savefig(image, dpi=70)
            png = base64.b64encode(image.getvalue()).decode()
            cell["outputs"].append(
                {
                    "output_type": "display_data",
                    "data": {"image/png": png, "text/plain": ["<Figure>"]},
                    "metadata": {},
                }
            )
    text = json.dumps(book, indent=1, ensure_ascii=False) + "\n"
    (ROOT / page).write_text(text, encoding="utf-8")


# -- tests ------------------------------------------------------------------------


def run_in_child(page: str, *options: str) -> None:
    command = [sys.executable, str(Path(__file__).resolve()), page, *options]
    # MLX compiles through the C++ compiler on Linux: longer than all pages.
    ours = {"MLX_ANE_DEVICE": "emulated", "MLX_DISABLE_COMPILE": "1"}
    environ = {**os.environ, **ours}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environ, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


def needs(page: str) -> None:
    """Skip where a page's extras are not installed."""
    source = "".join(block.source for block in blocks_of(page) if not block.skip)
    for word, module in {"plot": "matplotlib", "mlx_lm": "mlx_lm"}.items():
        if re.search(rf"\b{word}\b", source):
            pytest.importorskip(module)
    extension = importlib.import_module("mlx_ane._ext")
    if "mlx-ane doctor" in source and hasattr(extension, "apple"):
        pytest.skip("shows what doctor prints without the Apple route")


@pytest.mark.parametrize("page", PAGES)
def test_blocks(page: str) -> None:
    needs(page)
    if any(not block.skip for block in blocks_of(page)):
        run_in_child(page)


#: Stand in for two commands of the block below: what is installed is the package
#: under test, and the whole suite on device ane is what runs this test.
PIP = """#!/bin/sh
echo "pip $*" >> commands.txt
"""
PYTEST = """#!/bin/sh
echo "MLX_ANE_DEVICE=$MLX_ANE_DEVICE pytest $*" >> commands.txt
exec python -m pytest -q -p no:cacheprovider tests/test_einsum.py
"""


def test_prove_it_on_your_mac(tmp_path: Path, monkeypatch: Any) -> None:
    """The block for readers with a Mac, as written, over the doubles."""
    extension = importlib.import_module("mlx_ane._ext")
    if not hasattr(extension, "apple"):
        pytest.skip("needs the Apple route, over the doubles")
    (block,) = [b for b in blocks_of("docs/apple.md") if "_selftest" in b.source]
    assert (block.kind, block.skip) == ("sh", "needs a Mac")
    monkeypatch.setenv("MLX_ANE_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("MLX_ANE_DEVICE", raising=False)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    with workspace():
        for name, script in (("pip", PIP), ("pytest", PYTEST)):
            path = Path("bin", name)
            path.write_text(script)
            path.chmod(0o755)
        printed = run_shell(block.source)
        commands = Path("commands.txt").read_text().splitlines()
        found = json.loads(Path("doctor.json").read_text())
        report = list(Path().glob("mlx-ane-report.json"))
    assert commands == ["pip install .", "MLX_ANE_DEVICE=ane pytest "]
    assert "test variant  route in_memory  staging url  layout" in printed
    assert "test fingerprint" in printed and "test depth" in printed
    assert len(report) == 1
    assert "\npassed: " in printed
    assert re.search(r"\d+ passed", printed.splitlines()[-1])
    # doctor shows the verdict that the self-test stored, and runs it no second time.
    assert found["passed"] and found["self_test"]["passed"]
    assert found["self_test"]["age_seconds"] > 0 and found["self_test"]["findings"]
    product = [c for c in found["checks"] if c["name"] == "product"]
    assert {c["device"]: c["status"] for c in product}["ane"] == "pass"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_blocks_that_take_minutes(page: str) -> None:
    needs(page)
    if any(block.skip == "takes minutes" for block in blocks_of(page)):
        run_in_child(page, "--slow")


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_left_out_for_a_listed_reason(page: str) -> None:
    for block in blocks_of(page):
        assert block.skip in ("", *NOT_RUN), f"{page}:{block.line}: {block.skip}"


@pytest.mark.parametrize("page", [p for p in PAGES if p.endswith(".md")])
def test_commands_are_fenced(page: str) -> None:
    """An indented block, or one of another kind, would never be run."""
    text = (ROOT / page).read_text(encoding="utf-8")
    kinds = {match["kind"] for match in FENCE.finditer(text)}
    assert kinds <= {"python", "sh", "text", "swift"}  # nothing here runs Swift
    for block in re.findall(r"\n\n    (\S.*)", FENCE.sub("", text)):
        assert not re.search(r"\b(python|pip|mlx\S*|make|import) ", block), block


def test_the_runner_sees_a_wrong_block(tmp_path: Path, monkeypatch: Any) -> None:
    page = """
```python
print("a" * 3)
```

<!-- output -->
```text
aaa
```

<!-- not run: sketch -->
```python
undefined
```

    ```sh
    echo b; exit {status}
    ```
"""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    for status, output, failures in [("0", "aaa", 0), ("1", "aaa", 1), ("0", "ab", 1)]:
        text = page.replace("{status}", status).replace("aaa\n`", f"{output}\n`")
        (tmp_path / "page.md").write_text(text)
        assert run_page("page.md", slow=False) == failures


PUBLIC = [
    name
    for _, name, _ in pkgutil.walk_packages([str(ROOT / "mlx_ane")], "mlx_ane.")
    if not name.startswith(("mlx_ane._", "mlx_ane.bench", "mlx_ane.commands"))
]


@pytest.mark.parametrize("name", ["mlx_ane", *PUBLIC])
def test_docstrings(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Examples of docstrings; names that they take for granted are `examples()`."""
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)
    checker = Lenient()
    runner = doctest.DocTestRunner(checker, optionflags=OPTIONS)
    printed: list[str] = []
    for test in doctest.DocTestFinder().find(module, name, extraglobs=examples()):
        runner.run(test, out=printed.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(printed)


class Lenient(doctest.OutputChecker):
    """An example without an output says nothing about what it prints."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


def examples() -> dict[str, Any]:
    """What a reader of a docstring's example has: a converted model and data."""
    import mlx.core as mx
    import mlx.nn as nn

    import mlx_ane as ane

    ane.set_default_device("emulated")
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32))
    ane.convert(model, device="emulated")
    x, y = mx.random.normal((64, 64)), mx.random.normal((64, 32))

    def loss(model: nn.Module, x: mx.array, y: mx.array) -> mx.array:
        return mx.mean(mx.square(model(x) - y))

    def step(x: mx.array, y: mx.array) -> mx.array:
        return loss(model, x, y)

    gradients = nn.value_and_grad(model, step)(x, y)[1]
    return dict(locals())


# -- pages against the code -------------------------------------------------------


def page_text(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def first_cells(text: str) -> set[str]:
    """The names in backquotes that begin the rows of a page's tables."""
    return set(re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE))


def test_environment_page_has_every_variable() -> None:
    from mlx_ane._settings import VARIABLES

    assert first_cells(page_text("environment.md")) == set(VARIABLES)


def test_cpp_reads_documented_variables_only() -> None:
    from mlx_ane._settings import VARIABLES

    sources = [*(ROOT / "src").rglob("*.cpp"), *(ROOT / "src").rglob("*.h")]
    read = {
        name
        for path in sources
        for name in re.findall(r'variable\(\s*"(MLX_ANE_\w+)"', path.read_text())
    }
    assert read and read <= set(VARIABLES)


def test_devices_page_has_every_counter() -> None:
    import mlx_ane as ane

    ane.reset_counters()
    named = first_cells(page_text("devices.md"))
    assert set(ane.counters()) <= named


def test_counters_are_named_in_their_order() -> None:
    header = (ROOT / "src/trace/counters.h").read_text(encoding="utf-8")
    source = (ROOT / "src/trace/counters.cpp").read_text(encoding="utf-8")
    enums = re.findall(r"enum class \w+ \{(.*?)count_,", header, re.DOTALL)
    names = re.findall(r"names = \{(.*?)\};", source, re.DOTALL)
    assert len(enums) == len(names) == 2
    for enum, listed in zip(enums, names, strict=True):
        assert re.findall(r"(\w+),", enum) == re.findall(r'"(\w+)"', listed)


def test_devices_page_has_every_span() -> None:
    text = page_text("devices.md")
    sources = [path.read_text() for path in (ROOT / "src").rglob("*.cpp")]
    spans = set(re.findall(r'Span \w+\(\s*"(\w+)"', "".join(sources)))
    assert {"pack_x", "evaluate", "adam"} <= spans
    missing = {s for s in spans if f"`{s.removesuffix('_vjp')}`" not in text}
    assert not missing


def test_finetune_page_has_every_flag_of_ours() -> None:
    source = (ROOT / "mlx_ane/commands/lora.py").read_text(encoding="utf-8")
    flags = set(re.findall(r'^ +"(--[\w-]+)"|add_argument\("(--[\w-]+)"', source, re.M))
    named = {first or second for first, second in flags}
    assert {"--device", "--json"} <= named
    listed = re.findall(r"`(--[\w-]+)", page_text("finetune.md"))
    assert named <= set(listed)


def test_limits_page_has_every_field() -> None:
    header = (ROOT / "src/mil/limits.h").read_text(encoding="utf-8")
    fields = set(re.findall(r"^  (?:\w+ )*[\w:]+ (\w+) = ", header, flags=re.MULTILINE))
    assert {"max_axis", "max_rank"} <= fields
    assert first_cells(page_text("limits.md")) == fields - {"chip", "generation"}


def test_api_page_has_every_public_name() -> None:
    import mlx_ane as ane

    text = page_text("api.md")
    listed = set(re.findall(r"^::: mlx_ane\.(?:\w+\.)*(\w+)", text, re.MULTILINE))
    listed |= set(re.findall(r"^`(\w+)\(", text, re.MULTILINE))
    assert set(ane.__all__) - {"__version__"} <= listed


def test_versions_agree() -> None:
    from mlx_ane._versions import BUILT_FOR_MLX, __version__

    project = (ROOT / "pyproject.toml").read_text()
    assert f'\nversion = "{__version__}"' in project
    assert set(re.findall(r'"mlx(?:\[cpu\])?==([^;"]+)', project)) == {BUILT_FOR_MLX}
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^version: {re.escape(__version__)}$", citation, re.MULTILINE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", nargs="?")
    parser.add_argument("--slow", action="store_true", help="blocks of minutes too")
    parser.add_argument("--list", action="store_true", help="blocks that are not run")
    parser.add_argument("--write", metavar="NOTEBOOK", help="run it, store outputs")
    args = parser.parse_args()
    os.environ.setdefault("MLX_ANE_DEVICE", "emulated")
    if args.list:
        for page in PAGES:
            for block in blocks_of(page):
                if block.skip:
                    first = block.source.strip().splitlines()[0]
                    print(f"{page}:{block.line}: {block.skip}: {first}")
    with workspace():
        if args.write:
            write_notebook(args.write)
        if args.page:
            sys.exit(run_page(args.page, args.slow))

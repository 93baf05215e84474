"""What surrounds a process: forks, cores, folders, variables, where it starts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from processes import run_python

import mlx_ane as ane
from mlx_ane import _ext, _settings, _versions

# -- fork ---------------------------------------------------------------------------

FORK = """
    import os, sys
    import mlx.core as mx
    import mlx_ane as ane

    def use(what):
        if what == "none":
            return 0
        if what == "new stream":
            mx.set_default_stream(mx.new_stream(mx.cpu))
            what = "cpu"
        x, w = mx.ones((300, 256)), mx.full((128, 256), 2.0)
        y = x @ w.T if what == "mlx" else ane.linear(x, w, device=what)
        return y[299, 127].item()

    parent, child = sys.argv[1:]
    use(parent)
    if os.fork() == 0:
        try:
            print(use(child))
        except RuntimeError as error:
            print(error)
        sys.exit(7)  # runs what is registered at exit
    print("status", os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.parametrize(
    ("parent", "child", "answer"),
    [
        ("none", "none", "0"),
        ("mlx", "none", "0"),
        ("cpu", "none", "0"),
        ("emulated", "none", "0"),
        ("none", "mlx", "512"),
        ("none", "cpu", "512"),
        ("none", "emulated", "512"),
        ("cpu", "new stream", "512"),
        ("mlx", "cpu", "spawn"),
        ("cpu", "cpu", "spawn"),
        ("cpu", "emulated", "spawn"),
        ("emulated", "emulated", "spawn"),
    ],
)
def test_a_forked_child_ends_and_says_what_it_cannot(
    parent: str, child: str, answer: str
) -> None:
    done = run_python(FORK, parent, child, timeout=60)
    lines = done.stdout.splitlines()
    assert answer in lines[0]
    assert lines[1:] == ["status 7"]


def test_multiprocessing_by_fork_ends() -> None:
    done = run_python(
        """
        import multiprocessing, subprocess, sys
        import mlx.core as mx
        import mlx_ane as ane

        def double(n):
            return 2 * n

        x = mx.ones((300, 256))
        mx.eval(ane.linear(x, x, device="emulated"))
        fork = multiprocessing.get_context("fork")
        worker = fork.Process(target=sys.exit, args=(5,))
        worker.start()
        worker.join()
        with fork.Pool(2) as pool:
            doubled = pool.map(double, range(3))
        preexec = subprocess.run(["true"], preexec_fn=lambda: None)
        mx.eval(ane.linear(x, x, device="emulated"))
        print(worker.exitcode, doubled, preexec.returncode)
        """,
        timeout=60,
    )
    assert done.stdout == "5 [0, 2, 4] 0\n"


def test_the_timeline_of_a_process_is_not_its_childs(tmp_path: Path) -> None:
    run_python(
        """
        import os, sys
        import mlx.core as mx
        import mlx_ane as ane
        x = mx.ones((300, 256))
        mx.eval(ane.linear(x, x, device="cpu"))
        if os.fork() == 0:
            sys.exit(0)
        os.wait()
        assert os.path.getsize(os.environ["MLX_ANE_TIMELINE"]) == 0
        """,
        timeout=60,
        MLX_ANE_TIMELINE=str(tmp_path / "whole.json"),
    )
    assert json.loads((tmp_path / "whole.json").read_text())


# -- cores --------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_threads_follow_the_affinity_mask() -> None:
    code = """
        import os, sys
        import mlx.core as mx
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import mlx_ane as ane
        x = mx.ones((1024, 1024))
        mx.eval(x)
        before = len(os.listdir("/proc/self/task"))
        mx.eval(ane.linear(x, x, device="cpu"))
        print(ane._ext.blas_threads(), len(os.listdir("/proc/self/task")) - before)
    """
    assert run_python(code).stdout == "1 0\n"
    assert run_python(code, MLX_ANE_BLAS_THREADS="3").stdout == "3 2\n"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        # The least of the group and those around it.
        (
            "0::/a.slice/b.scope\n",
            {"a.slice/b.scope/cpu.max": "max 100000", "a.slice/cpu.max": "50000 50000"},
            1.0,
        ),
        (
            "0::/a/b\n",
            {"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "800000 100000\n"},
            2.0,
        ),
        # Version 1; the path is the host's, the group is mounted at the root.
        (
            "5:cpu,cpuacct:/docker/0123\n1:memory:/docker/0123\n",
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (
            "2:cpu:/\n1:cpuset:/\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            None,
        ),
    ],
)
def test_cpu_quota(
    groups: str, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert _ext.kernels.cpu_quota(str(tmp_path)) == quota


def test_no_control_groups_no_quota(tmp_path: Path) -> None:
    assert _ext.kernels.cpu_quota(str(tmp_path)) is None


# -- folders ------------------------------------------------------------------------


def cache_of(environment: dict[str, str], tmp: Path, code: str = "") -> list[str]:
    """The cache folder, and then what stderr says, of a process of its own."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import mlx_ane as ane\n"
            "from mlx_ane._settings import settings\n"
            "for _ in range(2): folder = settings.cache_dir\n"
            f"print(folder)\n{code}",
        ],
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


def test_import_makes_nothing(tmp_path: Path) -> None:
    done = run_python(
        "import mlx_ane, sys; sys.exit()", HOME=str(tmp_path), TMPDIR=str(tmp_path)
    )
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_in_the_home_folder_or_where_it_is_set(tmp_path: Path) -> None:
    home, chosen = tmp_path / "home", tmp_path / "chosen"
    home.mkdir()
    at_home = cache_of({"HOME": str(home)}, tmp_path)
    assert at_home[0].startswith(str(home))
    assert at_home[0].endswith("/mlx_ane")
    set_to = cache_of({"HOME": str(home), "MLX_ANE_CACHE_DIR": str(chosen)}, tmp_path)
    assert set_to == [str(chosen)]
    assert len(at_home) == 1


@pytest.mark.parametrize("variable", ["HOME", "MLX_ANE_CACHE_DIR"])
@pytest.mark.parametrize("folder", ["/dev/null", "/proc/self/none", "a file"])
def test_a_folder_that_cannot_be_costs_one_line(
    variable: str, folder: str, tmp_path: Path
) -> None:
    if folder == "a file":
        folder = str(tmp_path / "file")
        Path(folder).write_text("in the way")
    measure = (
        "import mlx.nn as nn\n"
        "model = nn.Sequential(nn.Linear(64, 96))\n"
        "ane.convert(model, policy='auto', device='emulated')"
    )
    lines = cache_of({variable: folder}, tmp_path, measure)
    own = tmp_path / f"mlx_ane_cache-{os.getuid()}"
    assert lines[0] == str(own)
    assert len(lines) == 2
    assert f"{own} is used instead; set MLX_ANE_CACHE_DIR" in lines[1]
    assert own.stat().st_mode & 0o777 == 0o700
    assert [f.name for f in (own / "measurements").iterdir()] == ["emulated.json"]


def test_the_folder_of_another_user_is_not_used(tmp_path: Path) -> None:
    own = tmp_path / f"mlx_ane_cache-{os.getuid()}"
    own.mkdir()
    own.chmod(0o777)
    assert cache_of({"HOME": "/dev/null"}, tmp_path)[0] == "/dev/null/mlx_ane"


@pytest.mark.skipif(os.geteuid() != 0, reason="changes the user")
def test_a_user_without_home_and_name() -> None:
    done = run_python(
        """
        import os, pwd, tempfile
        del os.environ["HOME"]
        os.environ.pop("MLX_ANE_CACHE_DIR", None)
        os.environ["TMPDIR"] = folder = tempfile.mkdtemp()
        os.chmod(folder, 0o777)

        def nobody(uid):
            raise KeyError(uid)

        pwd.getpwuid = nobody
        import mlx_ane
        os.setuid(54321)
        print(mlx_ane._settings.settings.cache_dir.relative_to(folder))
        os.rmdir(folder + "/mlx_ane_cache-54321")
        """
    )
    assert done.stdout == "mlx_ane_cache-54321\n"
    assert "there is no home folder" in done.stderr


def test_a_full_disk_costs_the_cache(tmp_path: Path) -> None:
    (tmp_path / "measurements").write_text("in the way")
    lines = cache_of(
        {"MLX_ANE_CACHE_DIR": str(tmp_path)},
        tmp_path,
        "import mlx.nn as nn\n"
        "for _ in range(2):\n"
        "    model = nn.Sequential(nn.Linear(64, 96))\n"
        "    ane.convert(model, policy='auto', device='emulated')",
    )
    assert lines[0] == str(tmp_path)
    assert len(lines) == 2
    assert "measurements cannot be kept" in lines[1]
    assert "set MLX_ANE_CACHE_DIR" in lines[1]


# -- variables ----------------------------------------------------------------------


def test_a_variable_of_another_project_costs_one_line() -> None:
    done = run_python(
        "import mlx_ane", MLX_ANE_WEIGHT_FORM="int8", MLX_ANE_DEVISE="cpu"
    )
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert "MLX_ANE_DEVISE is ignored" in lines[0]
    assert lines[0].endswith("the nearest is MLX_ANE_DEVICE.")
    assert "MLX_ANE_WEIGHT_FORM is ignored" in lines[1]


VALUES = [
    ("MLX_ANE_DEVICE", "gpu", "need one of auto, ane, emulated, cpu"),
    ("MLX_ANE_FALLBACK", "no", "need one of error, warn, allow"),
    ("MLX_ANE_BLAS_THREADS", "0", "need a whole number of at least 1"),
    ("MLX_ANE_BLAS_THREADS", "two", "need a whole number of at least 1"),
    ("MLX_ANE_SPOT_CHECK", "-1", "need a whole number of at least 0"),
    ("MLX_ANE_OUTPUT_CACHE", "1GB", "need a whole number of at least 0"),
    ("MLX_ANE_EMULATED", "chip=h99", "h13"),
    ("MLX_ANE_EMULATED", "numerics=slow", "need chip=CHIP"),
    ("MLX_ANE_EMULATED", "allow=nothing", "need"),
    ("MLX_ANE_FAULTS", "rain", "need one of compile_error"),
]


@pytest.mark.parametrize(("name", "value", "message"), VALUES)
def test_a_wrong_value_is_an_error_of_the_first_call(
    name: str, value: str, message: str
) -> None:
    done = run_python(
        """
        import sys
        import mlx.core as mx
        import mlx_ane as ane
        x = mx.ones((64, 64))
        device = None if sys.argv[1] == "MLX_ANE_DEVICE" else "emulated"
        for _ in range(2):
            try:
                ane.linear(x, x, device=device)
            except ValueError as error:
                print(error)
        """,
        name,
        **{name: value},
    )
    first, second = done.stdout.splitlines()
    assert first == second
    assert first.startswith("[mlx_ane")
    assert value in first
    assert message in first
    assert done.stderr == ""


def test_a_wrong_route_is_an_error_where_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLX_ANE_ROUTE", "usb")
    with pytest.raises(ValueError, match="MLX_ANE_ROUTE is 'usb', need one of in_m"):
        _ = _settings.settings.route


# -- where it starts ----------------------------------------------------------------


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder of sources as `git clone` leaves it, without a compiled part."""
    root = Path(__file__).parent.parent
    if not (root / "src").is_dir():
        pytest.skip("the sources are not here")
    for name in ("mlx_ane", "src"):
        shutil.copytree(
            root / name,
            tmp_path / name,
            ignore=shutil.ignore_patterns("*.so", "__pycache__", "_build_key.txt"),
        )
    return tmp_path


@pytest.fixture
def installed(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages that holds this build."""
    site = tmp_path_factory.mktemp("site")
    compiled = Path(str(_ext.__file__))
    shutil.copytree(sources / "mlx_ane", site / "mlx_ane")
    shutil.copy(compiled, site / "mlx_ane")
    if (compiled.parent / "lib").exists():
        (site / "mlx_ane" / "lib").symlink_to(compiled.parent / "lib")
    key = _versions.build_key(sources)
    (site / "mlx_ane" / _versions.KEY_FILE).write_text(key + "\n")
    return site


def import_in(sources: Path, *site: Path) -> subprocess.CompletedProcess[str]:
    """Import in a folder of sources, with nothing but these and MLX on the path."""
    import mlx.core

    packages = Path(tempfile.mkdtemp(dir=sources.parent))
    for package in Path(mlx.core.__file__).parent.parent.iterdir():
        if not package.name.startswith(("mlx_ane", "_editable")):  # this build
            (packages / package.name).symlink_to(package)
    return subprocess.run(
        [
            sys.executable,
            "-S",  # an editable install would answer before the path does
            "-c",
            "import mlx_ane as ane, mlx.core as mx; print(ane.__file__);"
            "print(ane.linear(mx.ones((2, 3)), mx.ones((1, 3))).tolist())",
        ],
        cwd=sources,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*site, packages]))},
        capture_output=True,
        text=True,
    )


def test_a_folder_of_sources_uses_the_installed_build(
    sources: Path, installed: Path
) -> None:
    done = import_in(sources, installed)
    assert done.stdout.splitlines() == [
        str(sources / "mlx_ane/__init__.py"),
        "[[3.0], [3.0]]",
    ], done.stderr


def test_an_installed_build_of_other_sources_is_not_used(
    sources: Path, installed: Path
) -> None:
    with (sources / "src/bindings.cpp").open("a") as file:
        file.write("// Another line.\n")
    done = import_in(sources, installed)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: [mlx_ane] this folder of sources has no comp")
    assert f"the one installed in {installed} is of other sources" in last


def test_a_folder_of_sources_alone_is_one_sentence(sources: Path) -> None:
    last = import_in(sources).stderr.splitlines()[-1]
    assert "no compiled part, and none is installed; start Python in another" in last


def test_the_key_of_this_build_is_that_of_its_sources() -> None:
    folder = Path(str(_ext.__file__)).parent
    root = Path(__file__).parent.parent
    if not (root / "src").is_dir() or not (folder / _versions.KEY_FILE).exists():
        pytest.skip("no build of these sources")
    key = (folder / _versions.KEY_FILE).read_text()
    # A build without Python's tools knows no version.
    assert key.split()[:-1] in ([], [ane.__version__])
    assert key.split()[-1] == _versions.build_key(root).split()[-1]


@pytest.mark.parametrize("module", ["mlx_ane", "mlx_ane._selftest"])
def test_modules_run_as_programs_without_a_warning(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", module, "--help"],
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.returncode == 0

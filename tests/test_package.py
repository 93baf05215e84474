"""The package as a whole: public names, versions, no hidden cost of importing."""

from __future__ import annotations

import importlib.metadata

import pytest
from processes import run_python

import mlx_ane as ane
from mlx_ane import _ext, _versions

#: The public API; a name more or less is a decision, not an accident.
NAMES = """ConversionReport ExportReport Plan VerificationReport __version__ clear_cache
compile convert counters default_device device_info einsum emulated export fast
is_available linear matmul mil nn optimizers plan plot reset_counters restore_devices
revert set_cache_limit set_default_device set_fallback timeline verify""".split()


def test_public_names() -> None:
    assert sorted(ane.__all__) == sorted(NAMES)
    for name in NAMES:
        assert getattr(ane, name) is not None
    assert set(ane.nn.__all__) == {
        "ANEEmbedding",
        "ANELinear",
        "ANEQuantizedEmbedding",
        "ANEQuantizedLinear",
    }
    assert set(ane.optimizers.__all__) == {"Adam", "AdamW"}


def test_public_functions_are_documented() -> None:
    undocumented = [
        name
        for name in NAMES
        if name != "__version__" and not (getattr(ane, name).__doc__ or "").strip()
    ]
    assert undocumented == []


def test_extension_is_of_this_version() -> None:
    assert _ext.built_for_mlx == _versions.BUILT_FOR_MLX


def test_installed_version() -> None:
    try:
        installed = importlib.metadata.version("mlx-ane")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("mlx-ane is not installed")
    assert installed == ane.__version__


def test_import_runs_nothing_and_needs_no_extras() -> None:
    done = run_python(
        """
        import sys
        for extra in ("mlx_lm", "matplotlib", "transformers", "sklearn", "coremltools"):
            sys.modules[extra] = None  # importing it would fail
        import mlx_ane as ane
        print({name: n for name, n in ane.counters().items() if n})
        """,
        PYTHONWARNINGS="error",
    )
    assert done.stdout.strip() == "{}"
    assert done.stderr == ""

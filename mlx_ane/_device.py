"""Which device a call uses: names, availability, the default and the `auto` rule."""

from __future__ import annotations

import platform
import sys

from mlx_ane import _ext
from mlx_ane._settings import settings
from mlx_ane._types import DEVICES, FALLBACKS, Device, Fallback, checked_word
from mlx_ane._versions import BUILT_FOR_MLX, __version__

#: As it was set; None until then, which means MLX_ANE_DEVICE.
_default: Device | None = None

#: What a checked name resolves to; `None` and "auto" join it when first asked for.
_resolved: dict[str | None, Device] = {"cpu": "cpu"}


def default_device() -> Device:
    """The device that `device=None` means now, with "auto" resolved.

    Returns:
        str: "ane", "emulated" or "cpu".

    Raises:
        RuntimeError: If the default names a device that this machine lacks.

    Example:
        >>> ane.set_default_device("emulated")
        >>> ane.default_device()
        'emulated'
    """
    return resolve(None, "default_device")


def set_default_device(device: Device) -> None:
    """Set the device of every call and layer that does not name one.

    Args:
        device (str): "auto", "ane", "emulated" or "cpu".

    Raises:
        ValueError: If the name is unknown.
        RuntimeError: If this machine lacks the device.
    """
    global _default
    resolve(device, "set_default_device")
    _default = device
    _resolved.pop(None, None)


def default_setting() -> Device:
    """The default as it was set, "auto" included; nothing is resolved or run."""
    return settings.device if _default is None else _default


def is_available() -> bool:
    """Whether a stored verdict says that a Neural Engine route passed here.

    The verdict belongs to this OS build, chip and version of mlx_ane. Nothing is
    run; `mlx-ane doctor` or the first use of device "auto" makes the verdict.

    Returns:
        bool: True if device "auto" means the Neural Engine.
    """
    if _ext.unavailable("ane") is not None:
        return False
    from mlx_ane import _selftest  # here, as `python -m` runs it as a program

    verdict = _selftest.stored_verdict()
    return verdict is not None and verdict.passed


def set_fallback(fallback: Fallback) -> None:
    """Set what a failed device call does, for the process.

    ``MLX_ANE_FALLBACK`` sets it from outside; without both it is "warn". Failures are
    counted as ``fallback_<cause>`` whatever is set here.

    Args:
        fallback (str): "error" raises at evaluation; "warn" computes the call on the
            CPU's BLAS, with one line on stderr for each cause; "allow" does so
            silently.

    Raises:
        ValueError: If the word is unknown.

    Example:
        >>> ane.set_fallback("error")
    """
    _ext.set_fallback(checked_word("set_fallback", "fallback", fallback, FALLBACKS))


def restore_devices() -> None:
    """Give disabled devices, and layers that pause, another chance.

    Eight failures in a row or one call that hangs take a device out for the process;
    a layer pauses after each failure.
    """
    _ext.restore_devices()


def why_unavailable(device: str) -> str | None:
    """The reason why a device cannot be used here, or None if it can."""
    return None if device == "cpu" else _ext.unavailable(device)


def device_info(device: Device | None = None) -> dict[str, str]:
    """Facts about a device.

    Args:
        device (str, optional): A device name; the default device if None.

    Returns:
        dict[str, str]: Facts by name; "device" and "available" are always there.
    """
    name = _checked(default_setting() if device is None else device, "device_info")
    if name == "auto":
        name = resolve("auto", "device_info")
    reason = why_unavailable(name)
    info = {
        "device": name,
        "available": "yes" if reason is None else f"no: {reason}",
        "mlx_ane": __version__,
        "mlx": BUILT_FOR_MLX,
        "blas": _ext.blas_name(),
        "blas_threads": str(_ext.blas_threads()),
    }
    return info if name == "cpu" else {**info, **_ext.device_info(name)}


def resolve(device: str | None, where: str) -> Device:
    """The device to use for a `device=` argument.

    Args:
        device (str, optional): A device name, or None for the default device.
        where (str): The caller, for the error message.

    Returns:
        str: "ane", "emulated" or "cpu".

    Raises:
        ValueError: If the name is unknown.
        RuntimeError: If this machine lacks the device.
    """
    try:
        return _resolved[device]
    except (KeyError, TypeError):
        pass  # the first use of this name, or no name at all
    name = _checked(default_setting() if device is None else device, where)
    name = _auto() if name == "auto" else _present(name, where)
    if name == "ane":
        _use_measured_layout()
    _resolved[device] = name
    return name


def _checked(device: object, where: str) -> Device:
    return checked_word(where, "device", device, DEVICES, " or None")


def _present(device: Device, where: str) -> Device:
    reason = why_unavailable(device)
    if reason is not None:
        raise RuntimeError(
            f"[mlx_ane.{where}] device {device!r} is not available here: {reason}; "
            f"use 'cpu' or 'emulated'."
        )
    return device


def auto_choice() -> tuple[str, str]:
    """What "auto" means by the stored verdict, and why; nothing is run.

    Returns:
        tuple[str, str]: "ane" or "cpu", and the reason.
    """
    missing = _no_engine()
    if missing is not None:
        return "cpu", missing
    from mlx_ane import _selftest

    verdict = _selftest.stored_verdict() or _selftest.lately_undecided()
    if verdict is None:
        return "cpu", "no self-test of the Neural Engine is stored"
    chosen = "ane" if verdict.passed else "cpu"
    return chosen, f"self-test of the Neural Engine: {verdict.reason}"


def _auto() -> Device:
    """The Neural Engine if it passed its self-test on this machine, else the CPU."""
    if _no_engine() is not None:
        return "cpu"
    from mlx_ane import _selftest

    verdict = _selftest.stored_verdict() or _selftest.lately_undecided()
    if verdict is None:
        verdict = _selftest.run_in_subprocess()
        chosen = "ane" if verdict.passed else "cpu"
        print(
            f"[mlx_ane] self-test of the Neural Engine: {verdict.reason}; "
            f"device 'auto' is {chosen!r}",
            file=sys.stderr,
        )
    return "ane" if verdict.passed else "cpu"


def _no_engine() -> str | None:
    """Why "auto" does not ask for a self-test here, or None if it does."""
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return "the Neural Engine needs macOS on Apple silicon"
    return _ext.unavailable("ane")


def _use_measured_layout() -> None:
    """Write programs in the layout that the self-test found best here."""
    from mlx_ane import _selftest

    verdict = _selftest.stored_verdict()
    if verdict is not None and verdict.layout:
        _ext.set_layout(verdict.layout)

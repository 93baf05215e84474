"""Published figures of each chip's Neural Engine, each with the report it is from.

Nothing here was measured by this project. The figures are effective ones, fitted
or timed by others on matmuls and convolutions; expect a factor of two either way.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A number and where it is from."""

    value: float
    source: str


@dataclass(frozen=True)
class Chip:
    """What the cost model needs of a chip, in seconds, bytes/s and FLOP/s."""

    name: str
    #: Time of a program call that does nothing.
    floor: Figure
    #: Streaming of operands that are program inputs.
    bandwidth: Figure
    #: Effective fp16 rate of one matmul.
    compute: Figure
    #: Power of the engine at work.
    watts: Figure
    #: fp32 rates of MPS on the GPU and of Accelerate on the CPU, where published.
    gpu: Figure | None = None
    cpu: Figure | None = None

    def seconds(self, flops: float, moved: float) -> float:
        """Expected time of one call that moves so many bytes."""
        return (
            self.floor.value + moved / self.bandwidth.value + flops / self.compute.value
        )


#: By architecture name, as limits are.
CHIPS = {
    "h13": Chip(
        "M1",
        floor=Figure(220e-6, "ANEForge, fit on M1"),
        bandwidth=Figure(9e9, "ANEForge, fit on M1"),
        compute=Figure(3.25e12, "ANEForge, fit on M1"),
        watts=Figure(4.4, "ANE guide ch. 10, M1 Max, matmul of 4096"),
    ),
    "h14": Chip(
        "M2",
        floor=Figure(100e-6, "ANEForge, fit on M2 Pro"),
        bandwidth=Figure(48e9, "ANEForge, fit on M2 Pro"),
        compute=Figure(7.3e12, "ANEForge, fit on M2 Pro"),
        watts=Figure(4.4, "as M1: no report for M2"),
    ),
    "h15": Chip(
        "M3",
        floor=Figure(95e-6, "as M4: no report for M3"),
        bandwidth=Figure(48e9, "as M2 Pro: no report for M3"),
        compute=Figure(
            10.3e12, "MiniMax-H3-Swift, M3 Ultra: 20.6 TFLOP/s on two dies, K = 1344"
        ),
        watts=Figure(4.0, "rustane: 3 to 5 W in training, M4 Max"),
    ),
    "h16g": Chip(
        "M4",
        floor=Figure(95e-6, "maderix/ANE and Orion, M4"),
        bandwidth=Figure(57e9, "as M5 Pro: no report for M4"),
        compute=Figure(7e12, "maderix/ANE, M4: about 7 TFLOP/s for a single op"),
        gpu=Figure(2.9e12, "arXiv:2502.05317, MPS on M4"),
        cpu=Figure(1.49e12, "arXiv:2502.05317, Accelerate on M4"),
        watts=Figure(2.8, "maderix/ANE, M4: 19 TFLOP/s"),
    ),
    "h17s": Chip(
        "M5",
        floor=Figure(110e-6, "ANEForge, fit on M5 Pro"),
        bandwidth=Figure(57e9, "ANEForge, fit on M5 Pro"),
        compute=Figure(8.9e12, "ANEForge, fit on M5 Pro"),
        watts=Figure(6.0, "M5 Max notes: 5.7 to 6.4 W saturated"),
    ),
}

#: Conversion between fp32 rows and fp16 surfaces on the host.
HOST_BANDWIDTH = Figure(10e9, "assumed; `mlx-ane bench` measures it")

#: Power of the CPU's matrix units and of the GPU at fp32 GEMM, on every chip. The
#: larger chips of a generation draw more: the ANE guide saw 32 W on an M1 Max's GPU.
CPU_WATTS = Figure(7.5, "arXiv:2502.05317, M4: 1.49 TFLOP/s at 200 GFLOP/s per watt")
GPU_WATTS = Figure(14.5, "arXiv:2502.05317, M4: 2.9 TFLOP/s at 200 GFLOP/s per watt")

#: The truth is expected within this factor of an estimate.
UNCERTAINTY = 2.0

_SAME_AS = {"h15g": "h15", "h16": "h16g", "h17": "h17s"}


def find(chip: str, where: str = "plan") -> tuple[str, Chip]:
    """Architecture name and figures of a chip.

    Args:
        chip (str): An architecture ("h16g") or a chip of the base line ("M4").
        where (str): The caller, for the error message.

    Raises:
        ValueError: If there are no figures for it.
    """
    by_name = {figures.name.lower(): key for key, figures in CHIPS.items()}
    key = by_name.get(chip.lower(), _SAME_AS.get(chip, chip))
    if key not in CHIPS:
        raise ValueError(
            f"[mlx_ane.{where}] chip is {chip!r}, need one of "
            f"{', '.join([*CHIPS, *_SAME_AS])} or M1 to M5."
        )
    return key, CHIPS[key]

"""Published figures of each chip, each with the report it is from.

Nothing here was measured by this project. The figures are effective ones, fitted
or timed by others on matmuls and convolutions; expect a factor of two either way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlx_ane import _ext


@dataclass(frozen=True)
class Figure:
    """A number and where it is from."""

    value: float
    source: str


@dataclass(frozen=True)
class Watts:
    """Power of a machine while the engine, the CPU or the GPU multiplies."""

    engine: float
    cpu: float
    gpu: float
    source: str


#: Conversion between fp32 rows and fp16 surfaces on the host.
HOST_BANDWIDTH = Figure(10e9, "assumed: no report; a Mac measures its own")
#: What starting one product costs.
GPU_LAUNCH = Figure(10e-6, "assumed: no report")
CPU_LAUNCH = Figure(5e-6, "assumed: no report")

#: Bytes of an element that is converted: read in fp32, written in fp16, or back.
CONVERTED = 6.0


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
    watts: Watts
    #: Rates of MPS on the GPU and of Accelerate's fp32 on the CPU.
    gpu: Figure
    cpu: Figure
    #: Memory that Adam streams through.
    memory: Figure
    #: The variants that gpu and cpu are of: "", "Pro", "Max" or "Ultra".
    gpu_of: str = ""
    cpu_of: str = ""
    host: Figure = HOST_BANDWIDTH
    gpu_launch: Figure = GPU_LAUNCH
    cpu_launch: Figure = CPU_LAUNCH

    def seconds(self, flops: float, moved: float) -> float:
        """Expected time of one call that moves so many bytes."""
        return (
            self.floor.value + moved / self.bandwidth.value + flops / self.compute.value
        )

    def converting(self, elements: float) -> float:
        """Expected time of converting so many elements on the host."""
        return CONVERTED * elements / self.host.value

    def on_gpu(self, flops: float, products: int = 1) -> float:
        """Expected time of so many products on the GPU."""
        return products * self.gpu_launch.value + flops / self.gpu.value

    def on_cpu(self, flops: float, products: int = 1) -> float:
        """Expected time of so many products on the CPU's BLAS."""
        return products * self.cpu_launch.value + flops / self.cpu.value


_SWEEP = "ANEForge's rooflines, GEMM of 2048"

#: By an architecture of each generation.
CHIPS = {
    "h13": Chip(
        "M1",
        floor=Figure(220e-6, "ANEForge, fit on M1"),
        bandwidth=Figure(20e9, f"fit to {_SWEEP} and around it, M1 and M1 Max"),
        compute=Figure(4.6e12, f"fit to {_SWEEP} and around it, M1 and M1 Max"),
        watts=Watts(6.4, 5.6, 9.7, f"{_SWEEP}, M1, whole package"),
        gpu=Figure(1.95e12, f"{_SWEEP}, fp16, M1 with 7 GPU cores"),
        cpu=Figure(0.86e12, f"{_SWEEP}, M1"),
        memory=Figure(68e9, "Apple's specification of M1"),
    ),
    "h14": Chip(
        "M2",
        floor=Figure(250e-6, f"fit to {_SWEEP} and around it, M2 Pro and M2 Max"),
        bandwidth=Figure(15e9, f"fit to {_SWEEP} and around it, M2 Pro and M2 Max"),
        compute=Figure(6.2e12, f"fit to {_SWEEP} and around it, M2 Pro and M2 Max"),
        watts=Watts(6.7, 19.2, 22.7, f"{_SWEEP}, M2 Max (GPU: M2 Pro), whole package"),
        gpu=Figure(4.6e12, f"{_SWEEP}, fp16, M2 Pro"),
        cpu=Figure(2.28e12, f"{_SWEEP}, M2 Max"),
        memory=Figure(100e9, "Apple's specification of M2"),
        gpu_of="Pro",
        cpu_of="Max",
    ),
    "h15": Chip(
        "M3",
        floor=Figure(95e-6, "as M4: no report for M3"),
        bandwidth=Figure(48e9, "ANEForge, first fit on M2 Pro: no report for M3"),
        compute=Figure(
            10.3e12, "MiniMax-H3-Swift, M3 Ultra: 20.6 TFLOP/s on two dies, K = 1344"
        ),
        watts=Watts(5.3, 8.7, 16.3, "as M4: no report for M3"),
        gpu=Figure(2.9e12, "as M4: no report for M3"),
        cpu=Figure(1.49e12, "as M4: no report for M3"),
        memory=Figure(100e9, "Apple's specification of M3"),
    ),
    "h16g": Chip(
        "M4",
        floor=Figure(95e-6, "maderix/ANE and Orion, M4"),
        bandwidth=Figure(57e9, "as M5 Pro: no report for M4"),
        compute=Figure(7e12, "maderix/ANE, M4: about 7 TFLOP/s for a single op"),
        watts=Watts(5.3, 8.7, 16.3, f"{_SWEEP}, M4, whole package"),
        gpu=Figure(2.9e12, "arXiv:2502.05317, MPS on M4"),
        cpu=Figure(1.49e12, "arXiv:2502.05317, Accelerate on M4"),
        memory=Figure(120e9, "Apple's specification of M4"),
    ),
    "h17s": Chip(
        "M5",
        floor=Figure(110e-6, "ANEForge, fit on M5 Pro"),
        bandwidth=Figure(57e9, "ANEForge, fit on M5 Pro"),
        compute=Figure(8.9e12, "ANEForge, fit on M5 Pro"),
        watts=Watts(8.2, 11.8, 40.9, f"{_SWEEP}, M5 (GPU: M5 Pro), whole package"),
        gpu=Figure(25e12, f"{_SWEEP}, fp16, M5 Pro"),
        cpu=Figure(2.09e12, f"{_SWEEP}, M5"),
        memory=Figure(153e9, "Apple's specification of M5"),
        gpu_of="Pro",
    ),
    "h18g": Chip(
        "M6",
        floor=Figure(110e-6, "as M5 Pro: no report for M6"),
        bandwidth=Figure(57e9, "as M5 Pro: no report for M6"),
        compute=Figure(8.9e12, "as M5 Pro: no report for M6"),
        watts=Watts(8.2, 11.8, 40.9, "as M5: no report for M6"),
        gpu=Figure(25e12, "as M5 Pro: no report for M6"),
        cpu=Figure(2.09e12, "as M5: no report for M6"),
        memory=Figure(153e9, "as M5: no report for M6"),
        gpu_of="Pro",
    ),
}

_BY_GENERATION = {int(key[1:3]): key for key in CHIPS}

#: GPU cores of each variant, those of Apple's largest.
GPU_CORES = {
    13: {"": 8, "Pro": 16, "Max": 32, "Ultra": 64},
    14: {"": 10, "Pro": 19, "Max": 38, "Ultra": 76},
    15: {"": 10, "Pro": 18, "Max": 40, "Ultra": 80},
    16: {"": 10, "Pro": 20, "Max": 40, "Ultra": 80},
    17: {"": 10, "Pro": 20, "Max": 40, "Ultra": 80},
    18: {"": 10, "Pro": 20, "Max": 40, "Ultra": 80},
}
#: Matrix units of the CPU: M4 Pro and Max are reported at twice M4's rate.
CPU_UNITS = {"": 1, "Pro": 2, "Max": 2, "Ultra": 4}

#: The truth is expected within this factor of an estimate.
UNCERTAINTY = 2.0


def find(chip: str, where: str = "plan") -> tuple[str, Chip]:
    """Figures of a chip, and the key in `CHIPS` of its generation.

    Rates of GPU and CPU are scaled from the variant that a report is of to the one
    that is named; an architecture is taken for the chip without Pro, Max or Ultra.

    Args:
        chip (str): "M1" to "M6", with or without Pro, Max or Ultra, or an architecture
            ("h13" to "h18" with any suffix), in any case.
        where (str): The caller, for the error message.

    Raises:
        ValueError: If the chip is unknown.
    """
    named = _ext.planning.chip(chip, f"mlx_ane.{where}")
    generation = named["generation"]
    key, variant = _BY_GENERATION[generation], named["name"].partition(" ")[2]
    found, cores = CHIPS[key], GPU_CORES[generation]
    return key, replace(
        found,
        gpu=_scaled(found.gpu, cores[found.gpu_of], cores[variant], "GPU cores"),
        cpu=_scaled(
            found.cpu, CPU_UNITS[found.cpu_of], CPU_UNITS[variant], "matrix units"
        ),
    )


def _scaled(figure: Figure, of: int, to: int, what: str) -> Figure:
    if of == to:
        return figure
    source = f"{figure.source}; scaled from {of} to {to} {what}"
    return Figure(figure.value * to / of, source)

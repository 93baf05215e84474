"""The benchmark of `mlx-ane bench`: correct first, then how fast, against whom.

Every side (mlx_ane, MLX, MLX with MKL, torch, NumPy) is a process of its own, so that
no library's symbols or threads leak into another. Rounds interleave the sides and
reverse their order every other time; what is compared is the ratio within a round.
"""

from mlx_ane.bench.cases import PARTS, cases
from mlx_ane.bench.measure import Row, measure
from mlx_ane.bench.report import Report

__all__ = ["PARTS", "Report", "Row", "cases", "measure"]

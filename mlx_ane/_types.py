"""The words that arguments take, for type checkers and for the checks at run time."""

from __future__ import annotations

from typing import Literal, TypeVar, get_args

Device = Literal["auto", "ane", "emulated", "cpu"]
Policy = Literal["all", "frozen", "auto"]
Precision = Literal["default", "high", "exact"]
Objective = Literal["time", "energy", "free_gpu"]
Attention = Literal["fused", "mlx"]
Granularity = Literal["layer", "block", "auto"]
Fallback = Literal["error", "warn", "allow"]

DEVICES: tuple[Device, ...] = get_args(Device)
POLICIES: tuple[Policy, ...] = get_args(Policy)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
FALLBACKS: tuple[Fallback, ...] = get_args(Fallback)


Word = TypeVar("Word", bound=str)


def checked_word(
    where: str, name: str, value: object, words: tuple[Word, ...], ending: str = ""
) -> Word:
    """An argument that is one of a few words.

    Args:
        where (str): The caller, as "convert".
        name (str): The argument.
        value: What was given.
        words (tuple of str): What it may be.
        ending (str): The end of the error's sentence, such as " or None".

    Raises:
        ValueError: If it is none of the words.
    """
    for word in words:
        if isinstance(value, str) and value == word:
            return word
    raise ValueError(
        f"[mlx_ane.{where}] {name} is {value!r}, need one of "
        f"{', '.join(map(repr, words))}{ending}."
    )

"""Which tests a run takes: variants of a parametrised test that cover every pair of values, and parts of a suite."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Hashable, Sequence
from itertools import combinations
from random import Random
from zlib import crc32

Variant = Sequence[Hashable]


def covering(variants: Sequence[Variant], strength: int = 2) -> set[int]:
    """The places of few variants that hold, for every two parameters, each pair of values that any variant holds.

    ``strength`` 1 is for each value by itself.

    Nearly every fault shows for one value of one parameter, or for a pair (Kuhn, Wallace, Gallo: Software Fault
    Interactions and Implications for Software Testing, IEEE TSE 30, 2004). The choice is greedy and always the same.
    """
    pairs = [_combinations(variant, strength) for variant in variants]
    missing = set[Hashable]().union(*pairs)
    chosen = set()
    while missing:
        best = max(range(len(pairs)), key=lambda place: (len(pairs[place] & missing), -place))
        chosen.add(best)
        missing -= pairs[best]
    return chosen


def _combinations(variant: Variant, strength: int) -> set[Hashable]:
    return set(combinations(enumerate(variant), min(strength, len(variant))))


def sampled(variants: int, number: int, seed: str) -> set[int]:
    """The places of ``number`` of the variants, others for another seed; all where there are no more."""
    return set(Random(seed).sample(range(variants), min(number, variants)))


def read_part(text: str) -> tuple[int, int]:
    """``"2/5"`` as (2, 5).

    Raises:
        ArgumentTypeError: the text is no part.
    """
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ArgumentTypeError(f"a part is such as 2/5, the second of five, not {text!r}")
    return int(part), int(parts)


def belongs(name: str, part: int, parts: int) -> bool:
    """Whether the test ``name`` belongs to this part; every name belongs to one of them."""
    return crc32(name.encode()) % parts == part - 1

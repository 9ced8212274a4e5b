from __future__ import annotations

from argparse import ArgumentTypeError
from itertools import combinations, product

import pytest

from tests.selection import belongs, covering, read_part, sampled


def test_every_pair_of_values_is_covered() -> None:
    variants = [variant for variant in product("abc", range(3), (None, True), "xyz") if variant != ("a", 0, None, "x")]
    chosen = covering(variants)
    for first, second in combinations(range(4), 2):
        held = {(variant[first], variant[second]) for variant in variants}
        assert {(variants[place][first], variants[place][second]) for place in chosen} == held
    assert len(chosen) <= 12 < len(variants)
    assert covering(variants) == chosen


@pytest.mark.parametrize("variants", [[()], [("a",), ("b",), ("c",)], list(product("ab", "xyz"))])
def test_what_has_at_most_two_parameters_is_whole(variants: list[tuple[str, ...]]) -> None:
    assert covering(variants) == set(range(len(variants)))


def test_a_sample_is_drawn_with_the_seed() -> None:
    drawn = {tuple(sorted(sampled(20, 3, f"{seed} a_test"))) for seed in range(30)}
    assert all(len(set(sample)) == 3 for sample in drawn)
    assert set().union(*drawn) == set(range(20))
    assert sampled(20, 3, "seed") == sampled(20, 3, "seed")
    assert sampled(2, 3, "seed") == {0, 1}


def test_parts_make_the_whole() -> None:
    names = [f"tests/test_a.py::test_b[{number}]" for number in range(700)]
    shares = [{name for name in names if belongs(name, part, 7)} for part in range(1, 8)]
    assert set().union(*shares) == set(names)
    assert sum(map(len, shares)) == len(names)
    assert min(map(len, shares)) > 60
    assert read_part("2/7") == (2, 7)


@pytest.mark.parametrize("text", ["", "2", "0/7", "8/7", "-1/7", "2/x", "2/7/1", "1.5/7"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="a part is such as 2/5"):
        read_part(text)

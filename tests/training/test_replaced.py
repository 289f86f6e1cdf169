"""Functions over functions go in any order, and leave what was there."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest

from energy_plugins.training.replaced import Replaced


class Owner:
    def method(self) -> str:
        return "own"


def adding(letter: str) -> Callable[[Callable[[], str]], str]:
    return lambda below: below() + letter


@pytest.mark.parametrize("shadowed", [False, True])
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_covers_go_in_any_order(order: tuple[int, ...], *, shadowed: bool) -> None:
    owner = Owner()
    if shadowed:
        vars(owner)["method"] = lambda: "user's"
    before = dict(vars(owner))
    covers = [Replaced() for _ in order]
    for letter, cover in zip("abc", covers, strict=True):
        cover.cover(owner, "method", adding(letter))
    plain = "user's" if shadowed else "own"
    assert owner.method() == f"{plain}abc"
    left = set("abc")
    for index in order:
        covers[index].close()
        left.remove("abc"[index])
        assert owner.method() == plain + "".join(sorted(left))
    assert vars(owner) == before


def test_what_a_stranger_has_put_over_it_stays() -> None:
    owner, cover = Owner(), Replaced()
    cover.cover(owner, "method", adding("a"))
    ours = owner.method
    vars(owner)["method"] = lambda: f"{ours()} and the stranger's"
    assert owner.method() == "owna and the stranger's"
    cover.close()
    assert owner.method() == "own and the stranger's"

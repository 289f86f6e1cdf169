"""Batches cut into micro-batches and joined again: nothing is lost, added or put in another order."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence

from energy_plugins.errors import BatchError
from energy_plugins.training.micro_batch.batch_tree import cut, joined, samples_in


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclass
class Image:
    pixels: torch.Tensor
    names: list[str]


class Encoding(UserDict[str, Any]):
    """As transformers': a mapping with more to it."""

    def __init__(self, data: dict[str, Any], more: int = 0) -> None:
        super().__init__(data)
        self.more = more


def rows(samples: int, width: int = 3) -> torch.Tensor:
    return torch.arange(samples * width, dtype=torch.float32).reshape(samples, width)


TREES = [
    rows,
    lambda n: [rows(n), rows(n, 1)],
    lambda n: (rows(n), {"labels": torch.arange(n), "task": "mlm", "scale": 2.0, "none": None}),
    lambda n: Pair(rows(n), torch.arange(n)),
    lambda n: Image(rows(n), [f"{k}.png" for k in range(n)]),
    lambda n: Encoding({"input_ids": torch.arange(n)}, more=5),
    lambda n: {"deep": {"er": (rows(n), [rows(n)])}, "ids": list(range(n))},
]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict | UserDict):
        return type(one) is type(other) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, Image):
        return same(one.pixels, other.pixels) and one.names == other.names
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("make", TREES)
@given(samples=st.integers(1, 9), size=st.integers(1, 10))
def test_what_is_cut_and_joined_is_as_it_was(make: Any, samples: int, size: int) -> None:
    tree = make(samples)
    chunks = cut(tree, size)
    assert [samples_in(chunk) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
    assert sum(samples_in(chunk) or 0 for chunk in chunks) == samples
    assert same(joined(chunks), tree)


def test_nothing_is_copied_and_the_batch_stays_as_it_is() -> None:
    batch: dict[str, Any] = {"x": rows(4), "names": ["a", "b", "c", "d"]}
    first, second = cut(batch, 2)
    assert first["x"].data_ptr() == batch["x"].data_ptr()
    assert second["names"] == ["c", "d"]
    assert len(batch["x"]) == 4
    encoding = Encoding({"x": rows(2)}, more=7)
    assert [one.more for one in cut(encoding, 1)] == [7, 7]
    assert len(encoding["x"]) == 2


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        ((rows(4), rows(3)), "have 3, 4 rows"),
        ({"x": rows(4), "loss_scale": torch.tensor(2.0)}, "without dimensions"),
        (pack_sequence([rows(2), rows(1)]), "PackedSequence"),
        ({"x": rows(2), "graph": object()}, "holds a object"),
        (rows(2).to_sparse(), "sparse"),
        ({"text": ["a", "b"]}, "no tensor"),
        ("a", "no tensor"),
    ],
)
def test_what_has_no_samples_is_refused(tree: Any, complaint: str) -> None:
    assert samples_in(tree) is None
    with pytest.raises(BatchError, match=complaint):
        cut(tree, 1)


@pytest.mark.parametrize(
    ("trees", "complaint"),
    [
        ([rows(2), rows(2, 4)], r"\[3\] and \[4\].*pad them"),
        ([rows(2), rows(2).double()], "do not go together"),
        ([{"x": rows(2), "task": "a"}, {"x": rows(2), "task": "b"}], "one says 'a'"),
        ([{"x": rows(2)}, {"y": rows(2)}], "other things"),
        ([[rows(2)], (rows(2),)], "one has a list"),
        ([], "no batch"),
    ],
)
def test_batches_that_differ_are_not_joined(trees: list[Any], complaint: str) -> None:
    with pytest.raises(BatchError, match=complaint):
        joined(trees)


def test_batches_of_other_lengths_are_joined_in_their_order() -> None:
    batches: list[dict[str, Any]] = [
        {"x": rows(2), "n": ["a", "b"], "task": "t"},
        {"x": rows(1) + 50, "n": ["c"], "task": "t"},
    ]
    made = joined(batches)
    assert made["x"][:, 0].tolist() == [0, 3, 50]
    assert (made["n"], made["task"]) == (["a", "b", "c"], "t")


def test_no_micro_batch_of_none() -> None:
    with pytest.raises(BatchError, match="at least 1"):
        cut(rows(2), 0)


class Box(MutableMapping[str, Any]):
    """A copy of it has the same items, for they are kept elsewhere."""

    def __init__(self, items: dict[str, Any]) -> None:
        self.items_of_all = items

    def __getitem__(self, key: str) -> Any:
        return self.items_of_all[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.items_of_all[key] = value

    def __delitem__(self, key: str) -> None:
        del self.items_of_all[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_of_all)

    def __len__(self) -> int:
        return len(self.items_of_all)


def test_a_mapping_that_cannot_be_copied_is_refused_and_left_as_it_is() -> None:
    for made in (lambda box: cut(box, 2), lambda box: joined([box, Box({"x": rows(4), "y": rows(4, 1)})])):
        box = Box({"x": rows(4), "y": rows(4, 1)})
        with pytest.raises(BatchError, match=r"copy\.copy of a Box is no copy of what it holds: hand on a dict"):
            made(box)
        assert torch.equal(box["x"], rows(4))
        assert torch.equal(box["y"], rows(4, 1))


class Named(dict[str, Any]):
    """The usual way to have the items of a dict as attributes, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__ = self


def test_items_that_are_attributes_are_those_of_the_part() -> None:
    whole = Named(x=rows(4))
    first, second = cut(whole, 2)
    assert torch.equal(vars(first)["x"], rows(4)[:2])
    assert torch.equal(vars(second)["x"], rows(4)[2:])
    assert torch.equal(vars(joined([first, second]))["x"], rows(4))
    assert torch.equal(vars(whole)["x"], rows(4))

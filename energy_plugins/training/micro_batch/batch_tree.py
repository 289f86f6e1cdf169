"""Batches as trees of tensors: how many samples they hold, cut into micro-batches, and joined to one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import chain
from typing import Any, TypeVar, cast

import torch
from torch.nn.utils.rnn import PackedSequence

from energy_plugins.errors import BatchError

T = TypeVar("T")

_CONSTANTS = (str, bytes, int, float, complex, bool, type(None))
"""What has no samples of its own: a list of them may be one for each sample."""


def samples_in(tree: object) -> int | None:
    """Return how many samples a batch holds: what all its tensors have as their first dimension; None if none is it."""
    try:
        return _samples(tree)
    except BatchError:
        return None


def sample_shape(tree: object) -> str:
    """Return the shapes and types of one sample's tensors, such as a sequence's length, as text."""
    return " ".join(f"{list(tensor.shape[1:])} {tensor.dtype}" for tensor in tensors(tree))


def cut(tree: T, size: int) -> list[T]:
    """Return a batch as micro-batches of ``size`` samples in their order; the last has what is left.

    Tensors are views of the batch's, so nothing is copied. A list of texts or numbers is cut if it has one for each
    sample; a text or number alone is handed to all.

    Raises:
        BatchError: if it holds what cannot be cut by sample.
    """
    if size < 1:
        raise BatchError(f"a micro-batch of {size} samples was asked for: at least 1 is needed")
    samples = _samples(tree)
    return [_rebuilt([tree], _part_of(samples, first, size)) for first in range(0, samples, size)]


def joined(trees: Sequence[T]) -> T:
    """Return batches of one shape as one batch, samples in their order.

    Raises:
        BatchError: if there are none, or they differ in more than their number of samples.
    """
    if not trees:
        raise BatchError("there is no batch to join")
    if len(trees) == 1:
        return trees[0]
    samples = [_samples(tree) for tree in trees]
    return _rebuilt(trees, lambda leaves: _joined(leaves, samples))


def mapped(tree: T, change: Callable[[Any], Any]) -> T:
    """Return a batch of the same shape with what ``change`` makes of each leaf: tensors, texts, numbers, lists of them.

    Raises:
        BatchError: if it holds what is no batch.
    """
    return _rebuilt([tree], lambda leaves: change(leaves[0]))


def copied(tree: T) -> T:
    """Return a batch of its own, for work that may change what it is given.

    Raises:
        BatchError: if it holds what is no batch.
    """
    return mapped(tree, _copied)


def _copied(leaf: object) -> object:
    if isinstance(leaf, torch.Tensor):
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)
    return copy.copy(leaf)


def _samples(tree: object) -> int:
    lengths = set()
    for tensor in tensors(tree):
        if not tensor.ndim:
            raise BatchError("it holds a tensor without dimensions, which belongs to the whole batch: hand on a number")
        if tensor.is_nested or tensor.layout is not torch.strided:
            raise BatchError("it holds a nested or sparse tensor, which has no samples in a row: hand on a dense one")
        lengths.add(len(tensor))
    if not lengths:
        raise BatchError(f"it holds no tensor that could be cut: it is a {type(tree).__name__}")
    if len(lengths) > 1:
        found = ", ".join(map(str, sorted(lengths)))
        raise BatchError(f"its tensors have {found} rows: all of them need one for each sample")
    return lengths.pop()


def _part_of(samples: int, first: int, size: int) -> Callable[[Sequence[Any]], Any]:
    def part(leaves: Sequence[Any]) -> object:
        (leaf,) = leaves
        is_each = isinstance(leaf, torch.Tensor) or (isinstance(leaf, list | tuple) and len(leaf) == samples)
        return leaf[first : first + size] if is_each else leaf

    return part


def _joined(leaves: Sequence[Any], samples: Sequence[int]) -> object:
    first = leaves[0]
    if isinstance(first, torch.Tensor):
        shapes = {tuple(leaf.shape[1:]) for leaf in leaves}
        if len(shapes) > 1 or len({(leaf.dtype, leaf.device) for leaf in leaves}) > 1:
            found = " and ".join(str(list(shape)) for shape in sorted(shapes))
            raise BatchError(f"samples of shape {found} do not go together: pad them to one length where they are made")
        return torch.cat(list(leaves))
    if isinstance(first, list | tuple) and all(len(one) == each for one, each in zip(leaves, samples, strict=True)):
        return type(first)(chain.from_iterable(leaves))
    if any(type(leaf) is not type(first) or leaf != first for leaf in leaves):
        raise BatchError(f"one says {first!r} where another does not, so they are no one batch")
    return first


def tensors(tree: object) -> Iterator[torch.Tensor]:
    """Yield the tensors of a batch, in an order that its structure gives."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif not _is_leaf(tree):
        yield from chain.from_iterable(map(tensors, _children(tree).values()))


def _is_leaf(tree: object) -> bool:
    """Tell whether it is handed on or cut as a whole."""
    if isinstance(tree, (torch.Tensor, *_CONSTANTS)):
        return True
    is_row = isinstance(tree, list | tuple) and not isinstance(tree, PackedSequence)
    return is_row and all(isinstance(one, _CONSTANTS) for one in cast("Sequence[object]", tree))


def _children(tree: object) -> Mapping[Any, object]:
    match tree:
        case PackedSequence():
            pass
        case MutableMapping():
            return tree
        case list() | tuple():
            return dict(enumerate(tree))
        case _ if is_dataclass(tree) and not isinstance(tree, type):
            return {field.name: getattr(tree, field.name) for field in fields(tree)}
    known = "a tensor, dict, list, tuple or dataclass"
    raise BatchError(f"it holds a {type(tree).__name__}, and only {known} can be cut by sample")


def _rebuilt(trees: Sequence[T], leaf: Callable[[Sequence[Any]], Any]) -> T:
    """Return a tree of the shape of the first, with what ``leaf`` makes of the leaves at the same place in all."""
    first = trees[0]
    if any(type(tree) is not type(first) for tree in trees):
        raise BatchError(f"one has a {type(first).__name__} where another does not, so they are no one batch")
    if all(_is_leaf(tree) for tree in trees):
        return cast("T", leaf(trees))
    each = [_children(tree) for tree in trees]
    if any(list(children) != list(each[0]) for children in each):
        raise BatchError(f"one {type(first).__name__} holds other things than another, so they are no one batch")
    made = {key: _rebuilt([children[key] for children in each], leaf) for key in each[0]}
    return cast("T", _like(first, made))


def _like(tree: object, children: dict[Any, Any]) -> object:
    if isinstance(tree, MutableMapping):
        return _like_mapping(tree, children)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):  # a named tuple
        return type(tree)(*children.values())
    if isinstance(tree, list | tuple):
        return type(tree)(children.values())
    return replace(cast("Any", tree), **children)


def _like_mapping(tree: MutableMapping[Any, object], children: dict[Any, Any]) -> MutableMapping[Any, object]:
    other = copy.copy(tree)  # it may be a class of its own, with more to it than what it maps
    if isinstance(tree, dict) and getattr(tree, "__dict__", None) is tree:
        vars(other).clear()
        other.__dict__ = cast("Any", other)  # its items are its attributes, as they are of the first
    for key, child in children.items():
        before = tree[key]
        other[key] = child
        if child is not before and tree[key] is child:  # both keep what they map in one place
            tree[key] = before
            raise BatchError(f"copy.copy of a {type(tree).__name__} is no copy of what it holds: hand on a dict")
    return other

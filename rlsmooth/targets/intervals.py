"""A tree's classes in depth-first order, from which rows of distances are written out without a table `[K, K]`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlsmooth.targets.fields import ComparedByFields
from rlsmooth.targets.target import is_traced, take_rows


@dataclass(frozen=True, eq=False)
class TreeIntervals(ComparedByFields):
    """A tree's classes in depth-first order, in which the classes below a node are an interval.

    Seen from one class, the intervals of its ancestors are nested: between two of them the lowest common ancestor is
    the same. So a row of distances is a few pieces, and no table `[K, K]` is needed. Of the inner nodes only the root
    and those with several children count, from the root down numbered 0 to `M - 1`.

    Attributes:
        places: int64 `[K]`, each class's place in that order.
        depths: int64 `[K]`, each class's edges to the root.
        parents: int64 `[K]`, the lowest of those nodes above each class.
        node_parents: int64 `[M]`, the same of each node; the root is its own.
        firsts: int64 `[M]`, the place of the first class below each node.
        ends: int64 `[M]`, the place behind the last one.
        node_depths: int64 `[M]`, each node's edges to the root.
        levels: nodes above a class, at most.
        is_in_order: whether the classes are in that order already.
        is_even: whether all classes are equally deep.
    """

    places: Tensor
    depths: Tensor
    parents: Tensor
    node_parents: Tensor
    firsts: Tensor
    ends: Tensor
    node_depths: Tensor
    levels: int
    is_in_order: bool
    is_even: bool

    def __post_init__(self) -> None:
        if not 0 <= self.levels <= len(self.firsts):  # a file that says so would take forever
            raise ValueError(f"levels={self.levels} of a tree's {len(self.firsts)} inner nodes: make it with Tree.")

    def meeting(self, one: Tensor, other: Tensor) -> Tensor:
        """The number of the lowest node above both of two classes that differ, broadcasting."""
        place = take_rows(self.places, other)
        node = take_rows(self.parents, one)
        for _ in range(self.levels - 1):
            below = (take_rows(self.firsts, node) <= place) & (place < take_rows(self.ends, node))
            node = torch.where(below, node, take_rows(self.node_parents, node))
        return node

    def distances(self, one: Tensor, other: Tensor) -> Tensor:
        """The number of edges between two classes, broadcasting."""
        shared = take_rows(self.node_depths, self.meeting(one, other))
        edges = take_rows(self.depths, one) + take_rows(self.depths, other) - 2 * shared
        return torch.where(one == other, 0, edges)

    def rows(self, labels: Tensor, by_distance: Tensor) -> Tensor:
        """`[..., K]`: for each class the value that its distance from the label has.

        Args:
            labels: int64 `[...]`.
            by_distance: `[..., D]`, each row's value of each distance.
        """
        num_classes = len(self.places)
        if is_traced():  # which knows no lengths that depend on values
            edges = self.distances(labels.unsqueeze(-1), torch.arange(num_classes, device=labels.device))
            return by_distance.expand(*labels.shape, by_distance.shape[-1]).gather(-1, edges)
        flat = labels.reshape(-1)
        values = by_distance.expand(*labels.shape, by_distance.shape[-1]).reshape(len(flat), by_distance.shape[-1])
        nodes = [take_rows(self.parents, flat)]
        for _ in range(self.levels - 1):
            nodes.append(take_rows(self.node_parents, nodes[-1]))
        above = torch.stack(nodes, -1)  # [N, levels], from below
        place, depth = take_rows(self.places, flat).unsqueeze(-1), take_rows(self.depths, flat).unsqueeze(-1)
        bounds = torch.cat((take_rows(self.firsts, above).flip(-1), place, place + 1, take_rows(self.ends, above)), -1)
        shared = take_rows(self.node_depths, above)
        edges = depth - 2 * torch.cat((shared.flip(-1), depth, shared), -1)  # but for the other class's own depth
        size = len(flat) * num_classes
        pieces = torch.repeat_interleave(bounds.diff().reshape(-1), output_size=size).reshape(len(flat), num_classes)
        if not self.is_in_order:
            pieces = pieces.index_select(-1, self.places)
        if self.is_even:
            found = take_rows(values.gather(-1, edges + self.depths[0]).reshape(-1), pieces)
        else:
            found = values.gather(-1, take_rows(edges.reshape(-1), pieces) + self.depths)
        return found.reshape(*labels.shape, num_classes)

    def map(self, change: Callable[[Tensor], Tensor]) -> TreeIntervals:
        """The same with each tensor changed: on another device."""
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in _INTERVAL_TENSORS}
        return replace(self, **changed)


_INTERVAL_TENSORS = ("places", "depths", "parents", "node_parents", "firsts", "ends", "node_depths")

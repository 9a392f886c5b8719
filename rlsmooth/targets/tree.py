"""A tree whose leaves are the classes, and the distances between them."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from rlsmooth.checks import check_in_range
from rlsmooth.targets.arguments import Labels, to_labels
from rlsmooth.targets.fields import rebuild
from rlsmooth.targets.kernels import LEAST_LOG_SHARE, minus_exponents


@dataclass(frozen=True)
class Tree:
    """One rooted tree. Its leaves, in the order of `classes`, are the classes 0 to `K - 1`.

    Make one with `from_parents`, `from_nested` or `from_table`, and say with `class_names=` which class is which
    number: without it the classes are numbered as the tree is read, which need not be how your labels are.

    Attributes:
        names: every node's name.
        parents: every node's parent, as an index into `names`; -1 for the root.
        classes: the leaves' indices into `names`, in class order.
        distances: int64 `[K, K]`, the number of edges between two leaves.

    Raises:
        ValueError: it is not one tree, or its leaves are not the classes; the message names the node.

    Example:
        >>> nested = {"cats": ["lion", "tiger"], "dogs": ["wolf"]}
        >>> tree = Tree.from_nested(nested, class_names=["lion", "wolf", "tiger"])
        >>> tree.class_names
        ('lion', 'wolf', 'tiger')
        >>> tree.distances.tolist()
        [[0, 4, 2], [4, 0, 4], [2, 4, 0]]
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    classes: tuple[int, ...]
    distances: Tensor = field(init=False, repr=False, compare=False)
    _diameter: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self.names, self.parents, self.classes)
        object.__setattr__(self, "distances", _distances(self.parents, self.classes))
        object.__setattr__(self, "_diameter", int(self.distances.max()))

    @property
    def num_classes(self) -> int:
        """`K`, the number of leaves."""
        return len(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The leaves' names in class order."""
        return tuple(self.names[leaf] for leaf in self.classes)

    def to_labels(self, labels: Labels | str | Sequence[str]) -> Tensor:
        """Labels as int64: names of classes become their numbers, numbers stay as they are.

        Raises:
            TypeError: they are neither names nor whole numbers.
            ValueError: a name that is no class.

        Example:
            >>> Tree.from_nested([["b"], ["a"]], class_names=["a", "b"]).to_labels(["b", "a"])
            tensor([1, 0])
        """
        values = labels
        if not isinstance(values, (Tensor, str)) and hasattr(values, "tolist"):
            values = values.tolist()  # an array
        first: object = values
        while isinstance(first, (list, tuple)) and first:
            first = first[0]
        if not isinstance(first, str):
            return to_labels(cast("Labels", labels))
        numbers = {name: number for number, name in enumerate(self.class_names)}

        def number_of(part: object) -> object:
            if isinstance(part, (list, tuple)):
                return [number_of(one) for one in part]
            if part not in numbers:
                raise ValueError(f"labels: {part!r} is no class of the tree: {list(self.class_names)[:10]}.")
            return numbers[part]

        return torch.tensor(number_of(values))

    def kernel(self, decay: float = 1.0, *, include_label: bool = False, in_logarithms: bool = False) -> Tensor:
        """Row `t`: `exp(-decay · d(t, j))`, normalised; float64 `[K, K]`.

        Args:
            decay: per edge, at least 0.
            include_label: False: the label's own entry is 0 and the rest sums to 1. True: the Boltzmann form over all
                classes (Bertinetto et al. 2020 scale by the greatest distance; here `decay` is per edge).
            in_logarithms: return the logarithms instead, each row up to a constant: none of them underflows.
        """
        log_weights = minus_exponents(check_in_range("decay", decay, 0.0), self.distances.to(torch.float64))
        if not include_label:
            log_weights = log_weights.masked_fill(
                torch.eye(self.num_classes, dtype=torch.bool, device="cpu"), -torch.inf
            )
        if in_logarithms:
            return log_weights
        if self.num_classes == 1:
            return torch.full((1, 1), float(include_label), dtype=torch.float64, device="cpu")
        return log_weights.softmax(-1)

    def is_steep(self, decay: float) -> bool:
        """Whether a mask may leave so little of some row of the kernel that its logarithms are needed."""
        return decay * self._diameter + math.log(self.num_classes) > -LEAST_LOG_SHARE

    @staticmethod
    def from_parents(
        parents: Sequence[int | None] | Mapping[str, str | None],
        classes: Sequence[int | str] | None = None,
        *,
        class_names: Sequence[str] | None = None,
    ) -> Tree:
        """A tree from parent pointers.

        Args:
            parents: `parents[i]` is node `i`'s parent (None or -1 for the root); or a mapping of names to names.
            classes: the leaves in class order, as indices or names. Default: all leaves in the order of `parents`.
            class_names: the leaves' names in class order, as the other constructors take them; instead of `classes`.

        Raises:
            ValueError: as the class; or an unknown parent or class; both `classes` and `class_names`.

        Example:
            >>> Tree.from_parents([-1, 0, 0, 1, 1]).class_names
            ('2', '3', '4')
        """
        if isinstance(parents, Mapping):
            names = tuple(parents)
            places = {name: place for place, name in enumerate(names)}
            for name, parent in parents.items():
                if parent is not None and parent not in places:
                    raise ValueError(f"parents: node {name!r} names the parent {parent!r}, which is not a node.")
            pointers = tuple(-1 if parent is None else places[parent] for parent in parents.values())
        else:
            names = tuple(str(place) for place in range(len(parents)))
            places = {name: place for place, name in enumerate(names)}
            pointers = tuple(_pointer(place, parent) for place, parent in enumerate(parents))
            for place, pointer in enumerate(pointers):
                if not -1 <= pointer < len(pointers):
                    raise ValueError(
                        f"parents[{place}]={pointer} is not a node: use 0 to {len(pointers) - 1}, or -1 for the root."
                    )
        if classes is not None and class_names is not None:
            raise ValueError("classes and class_names both say the order of the classes: give one of them.")
        if classes is None:
            inner = set(pointers)
            leaves = tuple(place for place in range(len(names)) if place not in inner)
            return _ordered(Tree(names, pointers, leaves), class_names)
        chosen = []
        for entry in classes:
            if str(entry) not in places:
                raise ValueError(f"classes: {entry!r} is not a node of the tree.")
            chosen.append(places[str(entry)])
        return Tree(names, pointers, tuple(chosen))

    @staticmethod
    def from_nested(nested: Mapping[str, Any] | Sequence[Any], *, class_names: Sequence[str] | None = None) -> Tree:
        """A tree from nested mappings (inner nodes) and sequences of names (leaves).

        Mappings hold named inner nodes; a sequence holds leaves or, unnamed, further inner nodes. An empty mapping or
        sequence under a name is an error: it would be a leaf by accident.

        Args:
            nested: the tree.
            class_names: all leaves, the first that of label 0, and so on. Default: in the order of `nested`.

        Raises:
            ValueError: a name that stands twice among the leaves, an empty group, something that is neither; names
                that are not the leaves'.

        Example:
            >>> Tree.from_nested({"cats": ["lion"], "dogs": ["wolf"]}, class_names=["wolf", "lion"]).class_names
            ('wolf', 'lion')
        """
        names, parents, leaves = ["root"], [-1], []

        def add(name: str, parent: int) -> int:
            names.append(name)
            parents.append(parent)
            return len(names) - 1

        def grow(part: object, parent: int, path: str) -> None:
            if isinstance(part, str):
                leaves.append(add(part, parent))
            elif isinstance(part, Mapping) and part:
                for name, below in part.items():
                    grow(below, add(str(name), parent), f"{path}/{name}")
            elif isinstance(part, Sequence) and part:
                for place, below in enumerate(part):
                    grow(below, parent if isinstance(below, str) else add(f"{path}[{place}]", parent), path)
            else:
                raise ValueError(
                    f"nested: {path!r} holds {part!r}; it needs a name, or a non-empty mapping or sequence of names."
                )

        grow(nested, 0, "root")
        return _ordered(Tree(tuple(names), tuple(parents), tuple(leaves)), class_names)

    @staticmethod
    def from_table(
        rows: Iterable[Sequence[str]] | Mapping[str, Sequence[str]], *, class_names: Sequence[str] | None = None
    ) -> Tree:
        """A tree from a taxonomy table: one row a class, its ranks from the broadest to the class itself.

        Args:
            rows: sequences of equal length, or a mapping of rank to column (a table's columns), broadest rank first.
            class_names: all classes, the first that of label 0, and so on. Default: in the order of the rows.

        Raises:
            ValueError: rows of unequal length, a class that stands twice, a taxon that has two parents; names that are
                not the classes'.

        Example:
            >>> Tree.from_table([("cats", "lion"), ("cats", "tiger"), ("dogs", "wolf")]).distances[0].tolist()
            [0, 2, 4]
        """
        if isinstance(rows, Mapping):
            columns = [list(column) for column in rows.values()]
            if len({len(column) for column in columns}) > 1:
                raise ValueError(
                    f"rows: columns have the lengths {[len(column) for column in columns]}; must be equal."
                )
            table = [tuple(map(str, row)) for row in zip(*columns, strict=True)]
        else:
            given = list(rows)
            for number, row in enumerate(given):
                if isinstance(row, str):
                    raise TypeError(f"rows[{number}]={row!r} is a string; needs the ranks: ({row!r},) for one rank.")
            table = [tuple(map(str, row)) for row in given]
        if not table:
            raise ValueError("rows is empty: give one row a class.")
        names, parents, leaves = ["root"], [-1], []
        places: dict[tuple[int, str], int] = {}
        for number, row in enumerate(table):
            if len(row) != len(table[0]) or not row:
                raise ValueError(f"rows[{number}] has {len(row)} ranks, rows[0] has {len(table[0])}; must be equal.")
            parent = 0
            for rank, name in enumerate(row):
                place = places.get((rank, name))
                if place is None:
                    place = places[rank, name] = len(names)
                    names.append(name)
                    parents.append(parent)
                elif rank == len(row) - 1:
                    raise ValueError(f"rows[{number}]: class {name!r} stands twice.")
                elif parents[place] != parent:
                    raise ValueError(
                        f"rows[{number}]: {name!r} has two parents, {names[parents[place]]!r} and {names[parent]!r}."
                    )
                parent = place
            leaves.append(parent)
        return _ordered(Tree(tuple(names), tuple(parents), tuple(leaves)), class_names)

    def in_order(self, class_names: Sequence[str]) -> Tree:
        """The same tree with its classes in another order.

        Args:
            class_names: all of `class_names`, in the order wanted.

        Raises:
            ValueError: a name that is no class, or a class that is left out or named twice.

        Example:
            >>> tree = Tree.from_nested({"cats": ["lion", "tiger"], "dogs": ["wolf"]})
            >>> tree.in_order(["wolf", "lion", "tiger"]).class_names
            ('wolf', 'lion', 'tiger')
        """
        place = dict(zip(self.class_names, self.classes, strict=True))
        wanted = [class_names] if isinstance(class_names, str) else [str(name) for name in class_names]
        if sorted(wanted) != sorted(place):
            odd = sorted(set(wanted) ^ set(place)) or sorted(wanted)
            raise ValueError(
                f"The tree's leaves and the classes must have the same names, once each; compare {odd[:5]}."
            )
        return Tree(self.names, self.parents, tuple(place[name] for name in wanted))

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return rebuild(self)

    def to_config(self) -> dict[str, list[Any]]:
        """The tree as JSON can hold it; `Tree.from_config` reads it back."""
        return {"names": list(self.names), "parents": list(self.parents), "classes": list(self.classes)}

    @staticmethod
    def from_config(config: Mapping[str, Sequence[Any]]) -> Tree:
        """The tree that `to_config` wrote."""
        return Tree(tuple(config["names"]), tuple(config["parents"]), tuple(config["classes"]))


def _ordered(tree: Tree, class_names: Sequence[str] | None) -> Tree:
    return tree if class_names is None else tree.in_order(class_names)


def _pointer(place: int, parent: int | None) -> int:
    try:
        return -1 if parent is None else operator.index(parent)
    except TypeError as error:
        raise TypeError(f"parents[{place}]={parent!r} must be a node's index, -1 or None.") from error


def _check(names: tuple[str, ...], parents: tuple[int, ...], classes: tuple[int, ...]) -> None:
    if not names or len(names) != len(parents):
        raise ValueError(f"A tree needs one parent a node: got {len(names)} names and {len(parents)} parents.")
    for what, pointers, lowest in (("parent", parents, -1), ("class", classes, 0)):
        for pointer in pointers:
            if not lowest <= pointer < len(names):
                raise ValueError(f"The {what} {pointer} is not a node: there are nodes 0 to {len(names) - 1}.")
    roots = [place for place, parent in enumerate(parents) if parent == -1]
    if len(roots) != 1:
        found = "none" if not roots else ", ".join(repr(names[place]) for place in roots)
        raise ValueError(f"A tree has one root (parent -1 or None), found {found}.")
    reached = {roots[0]}
    for start in range(len(names)):
        path: list[int] = []
        seen: set[int] = set()
        place = start
        while place not in reached:
            if place in seen:
                circle = " -> ".join(repr(names[node]) for node in (*path[path.index(place) :], place))
                raise ValueError(f"The parents run in a circle: {circle}.")
            path.append(place)
            seen.add(place)
            place = parents[place]
        reached.update(path)
    inner = set(parents)
    for place in classes:
        if place in inner:
            raise ValueError(f"Class {names[place]!r} is not a leaf: it has children.")
    missing = set(range(len(names))) - inner - set(classes)
    if missing:
        raise ValueError(f"Leaf {names[min(missing)]!r} is not among the classes: every leaf must be one.")
    seen_names: set[str] = set()
    for place in classes:
        if names[place] in seen_names:
            raise ValueError(f"Class {names[place]!r} stands twice.")
        seen_names.add(names[place])


def _distances(parents: tuple[int, ...], classes: tuple[int, ...]) -> Tensor:
    paths = []
    for leaf in classes:
        path, place = [leaf], parents[leaf]
        while place != -1:
            path.append(place)
            place = parents[place]
        paths.append(path[::-1])
    depth = torch.tensor([len(path) for path in paths], device="cpu")  # whatever torch's default device
    # Filled up with numbers that no other leaf has, so that only true ancestors agree.
    padded = torch.tensor(
        [path + [-1 - row] * (int(depth.max()) - len(path)) for row, path in enumerate(paths)],
        dtype=torch.int64,
        device="cpu",
    )
    shared = torch.zeros(len(paths), len(paths), dtype=torch.int64, device="cpu")
    for level in padded.T:
        shared += level.unsqueeze(0) == level.unsqueeze(1)
    shared.fill_diagonal_(0)
    distances = depth.unsqueeze(0) + depth.unsqueeze(1) - 2 * shared
    return distances.fill_diagonal_(0)

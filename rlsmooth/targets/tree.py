"""A tree whose leaves are the classes, and the distances between them.

From `TABLE_CLASSES` classes on nothing of size `[K, K]` is made unless `distances` or `kernel` is asked for: targets
write out the rows that they are asked for, from intervals of the classes in depth-first order (`TreeIntervals`).
"""

from __future__ import annotations

import functools
import math
import operator
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from rlsmooth.checks import check_choice, check_in_range
from rlsmooth.targets.arguments import Labels, to_labels
from rlsmooth.targets.fields import ComparedByFields
from rlsmooth.targets.intervals import TreeIntervals
from rlsmooth.targets.kernels import LEAST_LOG_SHARE, minus_exponents
from rlsmooth.targets.target import Reference, is_traced, take_rows, weight_dtype

TABLE_CLASSES = 1024
"""Up to so many classes a target reads a table `[K, K]`: one step where intervals take a dozen."""
_KEPT_REFERENCES = 16
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Tree(ComparedByFields):
    """One rooted tree. Its leaves, in the order of `classes`, are the classes 0 to `K - 1`.

    Make one with `from_parents`, `from_nested` or `from_table`, and say with `class_names=` which class is which
    number: without it the classes are numbered as the tree is read, which need not be how your labels are.

    Attributes:
        names: every node's name.
        parents: every node's parent, as an index into `names`; -1 for the root.
        classes: the leaves' indices into `names`, in class order.
        distances: int64 `[K, K]`, the number of edges between two leaves; of many classes made when first asked for.
            `distance` gives those of given pairs.

    Raises:
        ValueError: it is not one tree, or its leaves are not the classes; the message names the node.

    Examples:
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
    _intervals: TreeIntervals = field(init=False, repr=False, compare=False)
    _heights: Tensor = field(init=False, repr=False, compare=False)
    _deepest: int = field(init=False, repr=False, compare=False)
    _most_edges: int = field(
        init=False, repr=False, compare=False
    )  # between two classes, at most; known where there is a table
    _references: dict[tuple[Any, ...], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self.names, self.parents, self.classes)
        intervals, heights = _intervals(self.parents, self.classes)
        object.__setattr__(self, "_intervals", intervals)
        object.__setattr__(self, "_heights", heights)
        object.__setattr__(self, "_deepest", int(intervals.depths.max()))
        if self.num_classes <= TABLE_CLASSES:  # now, so that nobody who compiles has to trace it
            object.__setattr__(self, "_most_edges", int(self.distances.max()))

    @functools.cached_property
    def distances(self) -> Tensor:
        """int64 `[K, K]`, the number of edges between two leaves."""
        return self.distance_table("edges")

    def distance_table(self, measure: Literal["edges", "height"]) -> Tensor:
        """`distance` of all pairs of classes, int64 `[K, K]`."""
        table = torch.empty(self.num_classes, self.num_classes, dtype=torch.int64, device="cpu")
        classes = torch.arange(self.num_classes, device="cpu")
        for rows, label in zip(torch.split(table, _ROWS_AT_ONCE), torch.split(classes, _ROWS_AT_ONCE), strict=True):
            rows.copy_(self.distance(label.unsqueeze(-1), classes, measure=measure))
        return table

    def distance(self, one: Tensor, other: Tensor, *, measure: Literal["edges", "height"] = "edges") -> Tensor:
        """How far apart classes are, pair by pair, without a table of all pairs.

        Args:
            one: int64 `[...]`, in [0, K).
            other: int64, broadcasts with `one`.
            measure: `"edges"`: the number of edges between the two. `"height"`: that from their lowest common ancestor
                down to the deepest class below it (Bertinetto et al. 2020).

        Returns:
            int64, of the shape that the two broadcast to.

        Raises:
            ValueError: `measure` is unknown.
        """
        check_choice("measure", measure, ("edges", "height"))
        if measure == "edges":
            return self._at(one.device)[0].distances(one, other)
        intervals, heights = self._at(one.device)
        return torch.where(one == other, 0, take_rows(heights, intervals.meeting(one, other)))

    def _at(self, device: torch.device) -> tuple[TreeIntervals, Tensor]:
        """The intervals and the heights of their nodes, on a device."""
        if device == self._heights.device:
            return self._intervals, self._heights
        found: tuple[TreeIntervals, Tensor] = self._kept(
            (device,), lambda: (self._intervals.map(lambda each: each.to(device)), self._heights.to(device))
        )
        return found

    def _kept(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What `make` returns, made once for a key; the oldest goes where there are many."""
        if key in self._references:
            return self._references[key]
        with torch.inference_mode(False):  # a later training may use it
            made = make()
        if not is_traced():  # a tensor of the compiler's tracing must not be kept
            while len(self._references) >= _KEPT_REFERENCES:
                self._references.pop(next(iter(self._references)))
            self._references[key] = made
        return made

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

        Examples:
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

    def reference(self, labels: Tensor, decay: float, *, include_label: bool, masked: bool) -> tuple[Reference, bool]:
        """The kernel's rows of `labels`, and whether its values are logarithms, as `Reference.restricted` asks.

        Args:
            labels: int64 `[...]`, in [0, K).
            decay: as `kernel` has it, like `include_label`.
            include_label: whether the label has a share.
            masked: whether a mask follows: a steep kernel is given in logarithms then, each row up to a constant.
        """
        check_in_range("decay", decay, 0.0)
        size, device = self.num_classes, labels.device
        if size <= TABLE_CLASSES:
            # Whether a mask may leave so little of some row that its logarithms are needed.
            in_logarithms = masked and decay * self._most_edges + math.log(size) > -LEAST_LOG_SHARE
            form = (decay, include_label, in_logarithms, device)
            return Reference(size, "rows", self._kept(form, lambda: self._table(*form)), labels), in_logarithms
        key = (decay, include_label, device)
        if is_traced() and key not in self._references:
            values, shift, scale = self._shares_of(labels, decay, include_label)
        else:
            values, *shares = self._kept(key, lambda: self._shares(*key))
            shift, scale = (take_rows(each, labels) for each in shares)
        return Reference(size, "tree", values, labels, None, scale, shift, tree=self._at(device)[0]), True

    def _table(self, decay: float, include_label: bool, in_logarithms: bool, device: torch.device) -> Tensor:
        table = self.kernel(decay, include_label=include_label, in_logarithms=in_logarithms)
        if self.num_classes == 1:  # no other class to smooth to
            table = torch.full_like(table, 0.0 if in_logarithms else 1.0)
        return table.to(device, weight_dtype(device))

    def _shares(self, decay: float, include_label: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """The logarithm of each distance's weight, `[D]`, and each class's shift and scale, `[K]`, to normalise it."""
        values = minus_exponents(decay, torch.arange(2 * self._deepest + 1, dtype=torch.float64, device="cpu"))
        nearest, sums = _sums_of_others(self.parents, self.classes, values.exp(), include_label=include_label)
        shift, scale = values[nearest], 1 / sums
        if not include_label:
            values[0] = -torch.inf
        made = values, shift, scale
        return cast("tuple[Tensor, Tensor, Tensor]", tuple(each.to(device, weight_dtype(device)) for each in made))

    def _shares_of(self, labels: Tensor, decay: float, include_label: bool) -> tuple[Tensor, Tensor, Tensor]:
        """`_shares` of the classes `labels` [...], from rows `[..., K]`: the compiler can't trace the way up a tree."""
        device, dtype = labels.device, weight_dtype(labels.device)
        edges = self.distance(labels.unsqueeze(-1), torch.arange(self.num_classes, device=device))
        values = minus_exponents(decay, torch.arange(2 * self._deepest + 1, dtype=dtype, device=device))
        counts = torch.ones_like(edges, dtype=torch.bool) if include_label else edges > 0
        nearest = edges.masked_fill(~counts, len(values) - 1).amin(-1)
        falls = values.exp()[(edges - nearest.unsqueeze(-1)).clamp(min=0)]
        shift, scale = values[nearest], 1 / falls.masked_fill(~counts, 0.0).sum(-1)
        if not include_label:
            values = values.masked_fill(torch.arange(len(values), device=device) == 0, -torch.inf)
        return values, shift, scale

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

        Examples:
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

        Examples:
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
                    if isinstance(below, str):
                        leaves.append(add(below, parent))
                    else:
                        grow(below, add(f"{path}[{place}]", parent), path)
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

        Examples:
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

        Examples:
            >>> tree = Tree.from_nested({"cats": ["lion", "tiger"], "dogs": ["wolf"]})
            >>> tree.in_order(["wolf", "lion", "tiger"]).class_names
            ('wolf', 'lion', 'tiger')
        """
        place = dict(zip(self.class_names, self.classes, strict=True))
        wanted = [class_names] if isinstance(class_names, str) else [str(name) for name in class_names]
        if sorted(wanted) != sorted(place):
            odd = {"it lacks": sorted({*place} - {*wanted}), "no leaf is": sorted({*wanted} - {*place})}
            words = ", and ".join(f"{verb} {names[:5]}" for verb, names in odd.items() if names) or f"it is {wanted}"
            raise ValueError(f"class_names must be the tree's leaves, once each: {words}.")
        return Tree(self.names, self.parents, tuple(place[name] for name in wanted))

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
        for pointer in (min(pointers, default=0), max(pointers, default=0)):
            if not lowest <= pointer < len(names):
                raise ValueError(f"The {what} {pointer} is not a node: there are nodes 0 to {len(names) - 1}.")
    roots = [place for place, parent in enumerate(parents) if parent == -1]
    if len(roots) != 1:
        found = "none" if not roots else ", ".join(repr(names[place]) for place in roots)
        raise ValueError(f"A tree has one root (parent -1 or None), found {found}.")
    reached, inner = {roots[0]}, set(parents)
    for start in sorted(inner - {-1}):  # a circle has no leaves
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
    known = set(classes)
    if not known.isdisjoint(inner):
        place = next(place for place in classes if place in inner)
        raise ValueError(f"Class {names[place]!r} is not a leaf: it has children.")
    if len(known) + len(inner) - 1 < len(names):  # -1 is the root's parent
        missing = set(range(len(names))) - inner - known
        raise ValueError(f"Leaf {names[min(missing)]!r} is not among the classes: every leaf must be one.")
    chosen = [names[place] for place in classes]
    hashes = _tensor(map(hash, chosen)).sort().values  # a set of many names grows out of the cache
    if (hashes[1:] == hashes[:-1]).any() and len(set(chosen)) < len(chosen):
        raise ValueError(f"Class {Counter(chosen).most_common(1)[0][0]!r} stands twice.")


def _tensor(values: Iterable[int]) -> Tensor:
    """Some, as int64: sooner than torch reads them itself."""
    return torch.frombuffer(array("q", values), dtype=torch.int64)


def _jumps(up: Tensor) -> list[Tensor]:
    """Where 1, 2, 4, ... steps up lead from each node; the last node is above all and its own parent.

    So what is above or below each node is known after a few passes, however deep the tree is. Python's collector would
    go through an object a node again and again.
    """
    jumps = []
    while (up < len(up) - 1).any():
        jumps.append(up)
        up = up[up]
    return jumps


def _up(parents: tuple[int, ...]) -> Tensor:
    """Each node's parent, `[N + 1]`; the root's is one more node, `N`, which is its own."""
    return torch.cat((_tensor(parents), torch.tensor([-1], device="cpu"))) % (len(parents) + 1)


def _on_the_way_up(values: Tensor, jumps: list[Tensor], join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The values of each node and all above it, joined."""
    for jump in jumps:
        values = join(values, values[jump])
    return values


def _at_or_below(values: Tensor, jumps: list[Tensor], reduce: str) -> Tensor:
    """The values of each node and all below it, reduced; of the last node nothing that counts."""
    for jump in jumps:
        values = values.scatter_reduce(0, jump, values, reduce)
    return values


def _intervals(parents: tuple[int, ...], classes: tuple[int, ...]) -> tuple[TreeIntervals, Tensor]:
    """The classes' intervals and, for each of their nodes, the edges down to the deepest class below it."""
    up, of_classes = _up(parents), _tensor(classes)
    jumps, children = _jumps(up), torch.bincount(up, minlength=len(up))
    depths = _on_the_way_up((up < len(parents)).long(), jumps, torch.add)
    deepest = _at_or_below(depths, jumps, "amax") - depths
    counts = _at_or_below((children == 0).long(), jumps, "sum")
    by_parent = up.argsort(stable=True)
    before = torch.empty_like(counts)
    before[by_parent] = counts[by_parent].cumsum(0) - counts[by_parent]  # classes, in the order of parents
    before -= before.scatter_reduce(0, up, before, "amin", include_self=False)[up]  # below siblings that come first
    before[-1] = 0
    places = _on_the_way_up(before, jumps, torch.add)
    # A fork is the root or has several children. `fork` is the number of the lowest one at or above each node.
    is_fork = (children > 1) | (depths == 0)
    is_fork[-1] = False
    forks = is_fork.nonzero().squeeze(-1)
    forks = forks[(places[forks] * len(up) + depths[forks]).argsort()]  # parents before children
    fork = torch.zeros_like(up)
    fork[forks] = torch.arange(len(forks), device="cpu")
    fork = _on_the_way_up(fork, jumps, torch.maximum)
    levels = _on_the_way_up((is_fork & (children > 0)).long(), jumps, torch.add)
    order, depth = places[of_classes], depths[of_classes]
    intervals = TreeIntervals(
        order,
        depth,
        fork[of_classes],
        fork[up[forks]],
        places[forks],
        (places + counts)[forks],
        depths[forks],
        int(levels.max()),
        bool((order == torch.arange(len(classes), device="cpu")).all()),
        bool((depth == depth[0]).all()),
    )
    return intervals, deepest[forks]


_Others = tuple[Tensor, Tensor]
"""Some classes as seen from each node: the edges to the nearest, and the sum of all weights in units of its weight."""
_FAR = 1 << 40
"""The edges to the nearest of no classes."""


def _sums_of_others(
    parents: tuple[int, ...], classes: tuple[int, ...], falls: Tensor, *, include_label: bool
) -> tuple[Tensor, Tensor]:
    """For each of several classes the edges to the nearest other one and the sum of all weights in units of that one's.

    `falls[d]` is how much a weight falls over `d` edges. It goes over the inner nodes: all classes right below one see
    the same. All that is added is positive, so that nothing cancels.
    """
    up, of_classes = _up(parents), _tensor(classes)
    # The one above all stays the last.
    inner, parent_numbers = up.unique(return_inverse=True)  # type: ignore[no-untyped-call, unused-ignore]
    up, above, last = parent_numbers[inner], parent_numbers[of_classes], len(inner) - 1
    leaves, jumps, is_child = torch.bincount(above, minlength=len(up)), _jumps(up), up < last
    depths = _on_the_way_up(is_child.long(), jumps, torch.add)

    def joined(one: _Others, other: _Others) -> _Others:
        near = torch.minimum(one[0], other[0])
        return near, fallen(one, near) + fallen(other, near)

    def fallen(others: _Others, near: Tensor) -> Tensor:
        return others[1] * falls[(others[0] - near).clamp(max=len(falls) - 1)]

    def some(count: Tensor) -> _Others:
        """So many classes right below a node, from there."""
        return torch.where(count > 0, 1, _FAR), count.double()

    def gathered(others: _Others, jump: Tensor) -> _Others:
        """What all nodes that jump to a node see, from there."""
        edges = others[0] + depths - depths[jump]
        near = torch.full_like(edges, _FAR).scatter_reduce(0, jump, edges, "amin")
        return near, torch.zeros_like(others[1]).scatter_add(0, jump, fallen((edges, others[1]), near[jump]))

    below = some(leaves)
    for jump in jumps:
        below = joined(below, gathered(below, jump))
    outside = some(leaves[up])  # from the parent: its own classes, and what siblings on either side see
    siblings = up[:-1].argsort(stable=True)
    is_pair = up[siblings[1:]] == up[siblings[:-1]]
    for one, other in ((siblings[1:], siblings[:-1]), (siblings[:-1], siblings[1:])):
        beside = torch.full_like(up, last)
        beside[one[is_pair]] = other[is_pair]
        seen = torch.where(is_child, below[0] + 1, _FAR), below[1] * is_child
        for jump in _jumps(beside):
            seen = joined(seen, (seen[0][jump], seen[1][jump]))
        outside = joined(outside, (seen[0][beside], seen[1][beside]))
    outside = outside[0] + 1, outside[1]
    for jump in jumps:
        outside = joined(outside, (outside[0][jump] + depths - depths[jump], outside[1][jump]))
    edges, sums = joined(joined(outside, gathered(below, up)), some(leaves - 1))
    own = torch.zeros_like(edges), torch.ones_like(sums)
    edges, sums = joined((edges + 1, sums), own) if include_label else (edges + 1, sums)
    return edges[above], sums[above]

"""`Tree`: distances against a breadth-first search, and every way in which something is no tree of the classes."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlsmooth.targets import Tree


def distances_by_search(tree: Tree) -> list[list[int]]:
    """Breadth first over the undirected edges, from each leaf."""
    edges: dict[int, list[int]] = {place: [] for place in range(len(tree.names))}
    for place, parent in enumerate(tree.parents):
        if parent != -1:
            edges[place].append(parent)
            edges[parent].append(place)
    table = []
    for start in tree.classes:
        found, queue = {start: 0}, deque([start])
        while queue:
            here = queue.popleft()
            for there in edges[here]:
                if there not in found:
                    found[there] = found[here] + 1
                    queue.append(there)
        table.append([found[leaf] for leaf in tree.classes])
    return table


@given(st.lists(st.integers(0, 10**6), max_size=25), st.randoms(use_true_random=False))
def test_distances_are_those_of_a_search(choices: list[int], random: Any) -> None:
    """Any tree: node i + 1 hangs below some node before it; then all are shuffled."""
    parents = [-1, *(choice % (place + 1) for place, choice in enumerate(choices))]
    order = list(range(len(parents)))
    random.shuffle(order)
    shuffled = [0] * len(parents)
    for place, parent in enumerate(parents):
        shuffled[order[place]] = -1 if parent == -1 else order[parent]
    tree = Tree.from_parents(shuffled)
    assert tree.distances.dtype == torch.int64
    assert tree.distances.tolist() == distances_by_search(tree)
    leaves = [leaf for leaf in range(len(shuffled)) if leaf not in shuffled]
    assert list(tree.classes) == leaves
    assert tree.num_classes == len(leaves)
    for include_label in (False, True):
        table = tree.kernel(0.7, include_label=include_label)
        weights = np.exp(-0.7 * np.array(distances_by_search(tree)))
        if not include_label:
            np.fill_diagonal(weights, 0.0)
        if len(weights) > 1:
            weights /= weights.sum(-1, keepdims=True)
        np.testing.assert_allclose(table.numpy(), weights, rtol=1e-12)


def test_a_deep_chain_and_a_broad_star() -> None:
    chain = Tree.from_parents([-1, *range(300), 0])  # one leaf 300 edges down, another 1 edge down
    assert chain.distances.tolist() == [[0, 301], [301, 0]]
    star = Tree.from_parents([-1, *[0] * 500])
    assert star.num_classes == 500
    assert (star.distances + 2 * torch.eye(500, dtype=torch.int64) == 2).all()


def test_from_parents_as_numbers() -> None:
    tree = Tree.from_parents([-1, 0, 0, 1, 1])
    assert tree.class_names == ("2", "3", "4")
    assert tree == Tree.from_parents([None, 0, 0, 1, 1])
    assert tree == Tree.from_parents(np.array([-1, 0, 0, 1, 1]))  # type: ignore[arg-type]
    reordered = Tree.from_parents([-1, 0, 0, 1, 1], classes=[4, 2, 3])
    assert reordered.class_names == ("4", "2", "3")
    assert reordered.distances.tolist() == [[0, 3, 2], [3, 0, 3], [2, 3, 0]]
    assert Tree.from_parents([-1, 0, 0, 1, 1], classes=["4", "2", "3"]) == reordered


def test_from_parents_as_names() -> None:
    parents = {"lion": "cats", "cats": "animals", "animals": None, "tiger": "cats", "wolf": "animals"}
    tree = Tree.from_parents(parents)
    assert tree.class_names == ("lion", "tiger", "wolf")
    assert tree.distances.tolist() == [[0, 2, 3], [2, 0, 3], [3, 3, 0]]
    assert Tree.from_parents(parents, ["wolf", "lion", "tiger"]).class_names == ("wolf", "lion", "tiger")


def test_from_nested() -> None:
    tree = Tree.from_nested({"cats": {"big": ["lion", "tiger"], "small": "lynx"}, "dogs": ["wolf"]})
    assert tree.class_names == ("lion", "tiger", "lynx", "wolf")
    assert tree.distances.tolist() == [[0, 2, 4, 5], [2, 0, 4, 5], [4, 4, 0, 5], [5, 5, 5, 0]]
    unnamed = Tree.from_nested([["lion", "tiger"], ["wolf"], "bear"])
    assert unnamed.class_names == ("lion", "tiger", "wolf", "bear")
    assert unnamed.distances.tolist() == [[0, 2, 4, 3], [2, 0, 4, 3], [4, 4, 0, 3], [3, 3, 3, 0]]
    mixed = Tree.from_nested([{"cats": ["lion"]}, "bear"])
    assert mixed.distances.tolist() == distances_by_search(mixed)
    assert Tree.from_nested({"a": ["x"], "b": {"a": ["y"]}}).class_names == ("x", "y")  # inner names may repeat


def test_from_table() -> None:
    rows = [("cats", "big", "lion"), ("cats", "big", "tiger"), ("cats", "small", "lynx"), ("dogs", "true", "wolf")]
    tree = Tree.from_table(rows)
    assert tree.class_names == ("lion", "tiger", "lynx", "wolf")
    assert tree.distances.tolist() == [[0, 2, 4, 6], [2, 0, 4, 6], [4, 4, 0, 6], [6, 6, 6, 0]]
    columns = {
        "family": [row[0] for row in rows],
        "group": [row[1] for row in rows],
        "species": [row[2] for row in rows],
    }
    assert Tree.from_table(columns) == tree
    assert Tree.from_table(iter(rows)) == tree
    assert Tree.from_table([("a",), ("b",)]).distances.tolist() == [[0, 2], [2, 0]]
    assert Tree.from_table([("x", "x")]).class_names == ("x",)  # a genus and its species may share a name


def test_kernel_in_closed_form() -> None:
    tree = Tree.from_nested({"cats": ["lion", "tiger"], "dogs": ["wolf"]})
    near, far = np.exp(-2.0), np.exp(-4.0)
    np.testing.assert_allclose(tree.kernel()[0], [0, near / (near + far), far / (near + far)], rtol=1e-13)
    np.testing.assert_allclose(tree.kernel(include_label=True)[2], np.array([far, far, 1]) / (1 + 2 * far), rtol=1e-13)
    np.testing.assert_allclose(tree.kernel(0.0)[0], [0, 0.5, 0.5])
    assert tree.kernel(1e5)[0].tolist() == [0.0, 1.0, 0.0]
    assert tree.kernel().dtype == torch.float64


@pytest.mark.parametrize("decay", [-0.1, float("nan"), float("inf")])
def test_kernel_names_a_bad_decay(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"^decay={decay!r} must be a finite number in \[0, inf\]"):
        Tree.from_nested(["a", "b"]).kernel(decay)


def test_trees_are_values() -> None:
    tree = Tree.from_nested({"cats": ["lion", "tiger"], "dogs": ["wolf"]})
    same = Tree.from_table([("cats", "lion"), ("cats", "tiger"), ("dogs", "wolf")])
    assert tree == same
    assert hash(tree) == hash(same)
    assert tree != Tree.from_nested({"cats": ["lion"], "dogs": ["tiger", "wolf"]})
    assert "distances" not in repr(tree)
    for copied in (copy.deepcopy(tree), pickle.loads(pickle.dumps(tree))):
        assert copied == tree
        assert copied.distances.tolist() == tree.distances.tolist()
    with pytest.raises(AttributeError):
        tree.names = ()  # type: ignore[misc]


def test_config_round_trip_through_json() -> None:
    tree = Tree.from_nested({"cats": ["lion", "tiger"], "dogs": ["wolf"]})
    again = Tree.from_config(json.loads(json.dumps(tree.to_config())))
    assert again == tree
    assert again.distances.tolist() == tree.distances.tolist()


@pytest.mark.parametrize(
    ("parents", "classes", "message"),
    [
        ([], None, "A tree needs one parent a node: got 0 names and 0 parents."),
        ({}, None, "A tree needs one parent a node: got 0 names and 0 parents."),
        ([-1, -1, 0], None, "A tree has one root (parent -1 or None), found '0', '1'."),
        ({"a": None, "b": None}, None, "A tree has one root (parent -1 or None), found 'a', 'b'."),
        ([1, 0], None, "A tree has one root (parent -1 or None), found none."),
        ([0], None, "A tree has one root (parent -1 or None), found none."),
        ([-1, 1], None, "The parents run in a circle: '1' -> '1'."),
        ([-1, 0, 3, 4, 2], None, "The parents run in a circle: '2' -> '3' -> '4' -> '2'."),
        ([-1, 0, 3, 4, 3], None, "The parents run in a circle: '3' -> '4' -> '3'."),
        ({"a": None, "b": "c", "c": "b"}, None, "The parents run in a circle: 'b' -> 'c' -> 'b'."),
        ([-1, 5], None, "parents[1]=5 is not a node: use 0 to 1, or -1 for the root."),
        ([-2, 0], None, "parents[0]=-2 is not a node: use 0 to 1, or -1 for the root."),
        ({"a": None, "b": "x"}, None, "parents: node 'b' names the parent 'x', which is not a node."),
        ([-1, 0, 0], [1], "Leaf '2' is not among the classes: every leaf must be one."),
        ([-1, 0, 0], [], "Leaf '1' is not among the classes: every leaf must be one."),
        ([-1, 0, 1], [1, 2], "Class '1' is not a leaf: it has children."),
        ([-1, 0, 0], [0, 1, 2], "Class '0' is not a leaf: it has children."),
        ([-1, 0, 0], [1, 2, 2], "Class '2' stands twice."),
        ([-1, 0, 0], [1, 7], "classes: 7 is not a node of the tree."),
        ([-1, 0, 0], [1, -1], "classes: -1 is not a node of the tree."),
        ({"a": None, "b": "a"}, ["x"], "classes: 'x' is not a node of the tree."),
    ],
)
def test_from_parents_says_which_node_breaks_the_tree(parents: Any, classes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Tree.from_parents(parents, classes)


@pytest.mark.parametrize(
    ("nested", "message"),
    [
        ({}, "nested: 'root' holds {}; it needs a name, or a non-empty mapping or sequence of names."),
        ([], "nested: 'root' holds []; it needs"),
        ({"cats": []}, "nested: 'root/cats' holds []; it needs"),
        ({"cats": {"big": {}}}, "nested: 'root/cats/big' holds {}; it needs"),
        ({"cats": [3]}, "nested: 'root/cats' holds 3; it needs"),
        ({"cats": None}, "nested: 'root/cats' holds None; it needs"),
        ({"cats": {"lion", "tiger"}}, "nested: 'root/cats' holds {"),
        (["lion", []], "nested: 'root' holds []; it needs"),
        ({"cats": ["lion", "lion"]}, "Class 'lion' stands twice."),
        ({"cats": ["lion"], "dogs": ["lion"]}, "Class 'lion' stands twice."),
    ],
)
def test_from_nested_says_what_is_wrong(nested: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Tree.from_nested(nested)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "rows is empty: give one row a class."),
        ({}, "rows is empty: give one row a class."),
        ({"genus": [], "species": []}, "rows is empty: give one row a class."),
        ([()], "rows[0] has 0 ranks, rows[0] has 0; must be equal."),
        ([("a", "x"), ("b",)], "rows[1] has 1 ranks, rows[0] has 2; must be equal."),
        ({"genus": ["a"], "species": ["x", "y"]}, "rows: columns have the lengths [1, 2]; must be equal."),
        ([("a", "x"), ("a", "x")], "rows[1]: class 'x' stands twice."),
        ([("a", "x"), ("b", "x")], "rows[1]: class 'x' stands twice."),
        ([("a", "g", "x"), ("b", "g", "y")], "rows[1]: 'g' has two parents, 'a' and 'b'."),
    ],
)
def test_from_table_says_what_is_wrong(rows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Tree.from_table(rows)


def test_names_and_parents_of_unequal_length() -> None:
    with pytest.raises(ValueError, match=r"^A tree needs one parent a node: got 2 names and 1 parents"):
        Tree(("a", "b"), (-1,), (1,))


@pytest.mark.parametrize(
    ("parents", "classes"), [((-1, 7), (1,)), ((-1, -2), (1,)), ((-1, 0), (1, 9)), ((-1, 0), (1, -5))]
)
def test_a_config_that_points_nowhere_is_a_clear_error(parents: tuple[int, ...], classes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="is not a node"):
        Tree.from_config({"names": ["a", "b"], "parents": list(parents), "classes": list(classes)})


def test_fractional_parents_are_refused() -> None:
    with pytest.raises((TypeError, ValueError), match=r"parents\[1\]"):
        Tree.from_parents([-1, 0.9, 0.2])  # type: ignore[list-item]


def test_a_table_of_bare_names_is_refused() -> None:
    with pytest.raises((TypeError, ValueError), match=r"rows\[0\]"):
        Tree.from_table(["lion", "wolf"])

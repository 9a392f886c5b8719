"""Smoothing recipes as a file knows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlsmooth.targets import Smoothing
from rlsmooth.training.safe_file import SafeFileError

__all__ = ["decode_smoothing", "encode_smoothing"]


def encode_smoothing(recipes: Iterable[Smoothing] | None) -> list[dict[str, Any]] | None:
    """JSON of some recipes; a callable alpha, which no file can hold, becomes None there."""
    if recipes is None:
        return None
    encoded = []
    for recipe in recipes:
        is_function = callable(recipe.alpha)
        kept = dataclasses.replace(recipe, alpha=0.0) if is_function else recipe
        encoded.append({"recipe": kept.to_config(), "is_function": is_function})
    return encoded


def decode_smoothing(encoded: Any, name: str, path: Path) -> list[Smoothing] | None:
    """The recipes that `encode_smoothing` wrote.

    Raises:
        SafeFileError: it is malformed.
    """
    if encoded is None:
        return None
    try:
        recipes = [Smoothing.from_config(entry["recipe"]) for entry in encoded]
    except (KeyError, TypeError, ValueError) as error:
        raise SafeFileError(f"{str(path)!r} has a malformed {name} ({error}). Use another copy.") from error
    if not recipes:
        raise SafeFileError(f"{str(path)!r} has an empty {name}. Use another copy.")
    return recipes

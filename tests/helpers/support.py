"""Helpers that many tests share. `tests/helpers` is on the path of pytest, and nothing else of the tree is."""

from __future__ import annotations

from pathlib import Path

__all__ = ["REPOSITORY"]

REPOSITORY = Path(__file__).resolve().parents[2]

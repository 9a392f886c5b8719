"""Draws the figures of the tutorials, and that of the guide to TensorBoard: `make tutorials`.

python docs/draw.py FOLDER [NAME ...]

Each script runs in the folder, and what it draws is written there with few colours, so that it stays small.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent
SCRIPTS = {path.stem: path for path in (*sorted((DOCS / "tutorials").glob("*.py")), DOCS / "images/entropy_panels.py")}
COLOURS = 64


def draw(script: Path, folder: Path) -> Path:
    """Run one script in the folder, and give its figure few colours."""
    home = Path.cwd()
    os.chdir(folder)
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        os.chdir(home)
    figure = folder / f"{script.stem}.png"
    with Image.open(figure) as image:
        few = image.convert("RGB").quantize(COLOURS)
    few.save(figure, optimize=True)
    return figure


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "Agg")
    for name in sys.argv[2:] or SCRIPTS:
        start = time.process_time()
        figure = draw(SCRIPTS[name], Path(sys.argv[1]).resolve())
        print(f"{figure.name}: {figure.stat().st_size / 1000:.0f} kB, {time.process_time() - start:.0f} s", flush=True)

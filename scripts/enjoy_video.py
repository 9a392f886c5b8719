"""Show images in a window, or write them to an mp4 or gif."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rlsmooth.atomic import atomic_file

Frame = NDArray[np.uint8]


class Sink(Protocol):
    """Takes images, all of one size."""

    def show(self, image: Frame) -> None:
        """Take the next one."""


class FilmMaker(Sink, Protocol):
    """A sink with a file, which is there once the block has ended well."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, or give up."""


def check_film(path: Path) -> Path:
    """Return `path`, of a film that can be made.

    Raises:
        ValueError: it is no .mp4 or .gif, or a folder, or its folder is missing.
        ImportError: it is an .mp4 and imageio-ffmpeg is not installed.
    """
    if path.suffix.lower() not in (".mp4", ".gif") or path.is_dir():
        raise ValueError(f"video={str(path)!r} must be a file whose name ends in .mp4 or .gif.")
    if not path.parent.is_dir():
        raise ValueError(f"video={str(path)!r}: there is no folder {str(path.parent)!r}. Make it first.")
    if path.suffix.lower() == ".mp4":
        _ffmpeg()
    return path


def has_screen() -> bool:
    """Whether a window could be opened here."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@contextmanager
def open_sink(video: Path | None, *, fps: float, title: str) -> Iterator[Sink]:
    """A film in `video`, or a window if that is None.

    Raises:
        ValueError: there is no screen.
        ImportError: an .mp4 without imageio-ffmpeg, a window without pygame.
    """
    if video is None:
        window = Window(fps, title)
        try:
            yield window
        finally:
            window.close()
        return
    film: FilmMaker = Mp4File(video, fps) if video.suffix.lower() == ".mp4" else GifFile(video, fps)
    with film:
        yield film


class Mp4File:
    """H.264 in an mp4, encoded as the images come.

    Args:
        path: the file.
        fps: images a second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self._partial = path.with_name(f".{path.stem}.partial{path.suffix}")  # ffmpeg goes by the suffix
        self._writer: Generator[None, Any, None] | None = None

    def __enter__(self) -> Self:
        return self

    def show(self, image: Frame) -> None:
        """Take the next one; its sides must be even."""
        if self._writer is None:
            size = (image.shape[1], image.shape[0])
            self._writer = _ffmpeg().write_frames(
                str(self._partial), size, fps=self.fps, quality=7, macro_block_size=2, ffmpeg_log_level="error"
            )
            self._writer.send(None)
        self._writer.send(np.ascontiguousarray(image))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
        if error is None and self._partial.exists():
            os.replace(self._partial, self.path)
        with suppress(FileNotFoundError):
            self._partial.unlink()


class GifFile:
    """A gif that repeats. All images stay in memory until its end.

    Args:
        path: the file.
        fps: images a second; a gif's times are whole hundredths of a second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.duration = path, max(20, 10 * round(100 / fps))
        self._images: list[Image.Image] = []

    def __enter__(self) -> Self:
        return self

    def show(self, image: Frame) -> None:
        """Take the next one, in 256 colours."""
        self._images.append(Image.fromarray(image).quantize(256, dither=Image.Dither.NONE))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._images:
            first, *rest = self._images
            with atomic_file(self.path) as file:
                first.save(file, format="GIF", save_all=True, append_images=rest, duration=self.duration, loop=0)


class Window:
    """A window that shows images at their pace. Closing it ends the program as Ctrl+C does.

    Args:
        fps: images a second.
        title: of the window.

    Raises:
        ValueError: there is no screen.
        ImportError: pygame is not installed.
    """

    def __init__(self, fps: float, title: str) -> None:
        if not has_screen() and "SDL_VIDEODRIVER" not in os.environ:
            raise ValueError("there is no screen here: give --video agent.mp4 (or .gif), or --no-render.")
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            import pygame
        except ImportError as error:
            raise ImportError("a window needs pygame: pip install pygame, or give --video agent.gif.") from error
        self._pygame: Any = pygame
        self.fps, self.title = fps, title
        self._screen: Any = None

    def show(self, image: Frame) -> None:
        """Show the next one, and wait until it is time."""
        pygame = self._pygame
        if self._screen is None:
            pygame.display.init()
            self._screen = pygame.display.set_mode((image.shape[1], image.shape[0]))
            pygame.display.set_caption(self.title)
            self._clock = pygame.time.Clock()
        if any(event.type == pygame.QUIT for event in pygame.event.get()):
            raise KeyboardInterrupt
        self._screen.blit(pygame.surfarray.make_surface(image.swapaxes(0, 1)), (0, 0))
        pygame.display.flip()
        self._clock.tick(self.fps)

    def close(self) -> None:
        """Close the window."""
        if self._screen is not None:
            self._pygame.display.quit()


def _ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ImportError(
            "an .mp4 needs imageio-ffmpeg: pip install 'rlsmooth[video]', or give a name that ends in .gif."
        ) from error
    return imageio_ffmpeg

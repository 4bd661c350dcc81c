"""Digits as a picture: a grid of images, or two side by side, written as PNG."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.floating]
Picture = npt.NDArray[np.uint8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WHITE = 255


def write_grids(path: Path, *groups: Images, columns: int = 10, scale: int = 3, gap: int = 24) -> None:
    """Write each group of images (n, 1, h, w) in [-1, 1] as a grid, the grids from left to right, as a grey PNG.

    Args:
        path: the file.
        groups: equally many images in each.
        columns: images in a row of each grid.
        scale: pixels of the picture per pixel of an image, in both directions.
        gap: white pixels between two grids.
    """
    grids = [grid(images, columns, scale) for images in groups]
    space = np.full((grids[0].shape[0], gap), _WHITE, dtype=np.uint8)
    parts = [part for picture in grids for part in (space, picture)]
    path.write_bytes(png(np.hstack(parts[1:])))


def grid(images: Images, columns: int = 10, scale: int = 3) -> Picture:
    """Images (n, 1, h, w), -1 black and 1 white, as one picture, row by row; a last row may stay partly black."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    cells = np.full((rows * columns, height, width), -1.0)
    cells[:count] = images[:, 0]
    tiled = cells.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
    grey = np.rint((np.clip(tiled, -1, 1) + 1) * (_WHITE / 2)).astype(np.uint8)
    return grey.repeat(scale, 0).repeat(scale, 1)


def png(picture: Picture) -> bytes:
    """An 8-bit grey picture (h, w) as a PNG file (ISO/IEC 15948)."""
    height, width = picture.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    # A zero before each row says that the row is not filtered.
    rows = np.pad(picture, ((0, 0), (1, 0))).tobytes()
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

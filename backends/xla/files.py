"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import numpy as np

from graphopt.ir.model import check_folder


def write_bytes(path: Path, data: bytes | bytearray) -> None:
    """Write `data` under another name in the same folder, then move it to `path`.

    Raises:
        ModelError: there is no such folder, or no file can take this place.
        OSError: it cannot be written; what was at `path` before stays.
    """
    with _replacing(path) as file:
        file.write(data)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write `arrays` as an .npz file, in their order and without pickle: `numpy.load(path)` has them by name. numpy has
    no bfloat16; such an array is read as void of two bytes, whose `view("bfloat16")` it is once ml_dtypes is imported.

    Raises:
        ModelError: there is no such folder, or no file can take this place.
        OSError: it cannot be written; what was at `path` before stays.
    """
    with _replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` once it is whole."""
    check_folder(path)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""Calibration data from a file, as the command line takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graphopt.errors import ModelError


def read_named(path: Path) -> dict[str, Any]:
    """The arrays of an .npz file by input name. Raises ModelError as `read_calibration` does, and for an .npy file."""
    found = read_calibration(path)
    if not isinstance(found, dict):
        raise ModelError(f"{path}: holds one array without a name; expected an .npz file of arrays by input name")
    return found


def read_calibration(path: Path) -> Any:
    """The arrays of an .npz file by input name, or the array of an .npy file, for a model with one input; several
    samples along the first axis. Nothing in the file is unpickled.

    Raises:
        ModelError: there is no such file, or it holds something else.
    """
    import numpy as np

    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; expected an .npz file of arrays by input name") from None
    except Exception as error:  # numpy raises whatever the content makes it stumble over
        raise ModelError(
            f"{path}: cannot be read as arrays ({error}); expected an .npz file of arrays by input name, as "
            "numpy.savez writes it"
        ) from error

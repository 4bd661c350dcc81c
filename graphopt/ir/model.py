"""A model as it came in: its regions, its shape information, and the way back to the kind that was given."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from graphopt.errors import ModelError
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.weights import Array


class Model(ABC):
    """What `optimize` works on. Made by `graphopt.ir.load.load_model`; never shares mutable state with the input."""

    storage: str
    """"onnx" or "fx"."""

    @property
    @abstractmethod
    def main(self) -> Graph:
        """The region that runs first."""

    @abstractmethod
    def regions(self) -> Sequence[Graph]:
        """Every region, in a deterministic order: main, then control-flow bodies depth first, then functions."""

    def examples(self) -> Sequence[Array] | None:
        """The inputs that the model was traced with, one array per input of `main`; None if it came with none."""
        return None

    def require_data(self) -> None:  # noqa: B027  # files have their numbers
        """Raises ModelError if a weight has a type and no numbers: such a model can be looked at, and not optimised."""

    @abstractmethod
    def refresh(self) -> None:
        """Bring shape information up to date and drop weights that nothing reads any more. Called between passes."""

    @abstractmethod
    def export(self) -> Any:
        """The model in the kind that was given (ModelProto in, ModelProto out ...)."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the model to `path`: to a temporary file that is then moved into place, weights streamed one by
        one, external data beside it when the file would pass 2 GB. Raises ModelError if there is no such folder."""

    @abstractmethod
    def weights(self) -> Sequence[tuple[str, int, int]]:
        """(name, number of elements, bytes) of every stored weight, each shared weight once."""

    @abstractmethod
    def clone(self) -> Model:
        """The whole model once more, to be exported as this one is. The two share no more than weights."""

    def copy(self) -> Model:
        """A model of its own that shares no more than weights. Only the main graph and what it holds is copied."""
        main = self.main
        return self.extract(list(main.nodes()), main.inputs(), main.outputs())

    @abstractmethod
    def extract(self, nodes: Iterable[Node], inputs: Sequence[Value], outputs: Sequence[Value]) -> Model:
        """A model of its own that computes `outputs` from `inputs` with copies of `nodes`, all of them of `main`.

        What else is read must be constant; weights are shared with this model, not copied. Names are kept.

        Raises:
            UnsupportedError: a value is read that is neither an input, nor a constant, nor computed by `nodes`.
        """


def as_path(path: Any) -> Path:
    """`path` as a Path. Raises ModelError for what is none."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str) or "\0" in os.fspath(path):
        raise ModelError(f"{path!r} is no path to save to; expected text or a Path, as in save(model, 'm.onnx')")
    return Path(path)


def check_folder(path: Path) -> None:
    """Raises ModelError if no file can be written to `path` because there is no folder for it, or one in its place, or
    what no file may take the place of: files are moved into place, which would remove a device or a pipe, or the file
    that this process prints into, with links to it such as /dev/stdout."""
    if not os.path.isdir(path.parent):
        raise ModelError(f"cannot save to {path}: the folder {path.parent} does not exist; make it first")
    if os.path.isdir(path):
        raise ModelError(f"cannot save to {path}: expected the path of a file, got a folder; add a file name")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ModelError(f"cannot save to {path}: expected the path of a file, got a device or a pipe; choose another")
    if _is_printed_into(path):
        raise ModelError(
            f"cannot save to {path}: standard output or standard error goes there, and what is saved replaces "
            "the file; choose another"
        )


def _is_printed_into(path: Path) -> bool:
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # There is no such file yet, or the descriptor is closed.
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return True
    return False

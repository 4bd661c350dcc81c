"""The list of real pretrained models that the tools and benchmarks run on (zoo.json), read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

from graphopt.errors import GraphoptError


class ManifestError(GraphoptError):
    """An entry of the manifest that cannot be used: a field is missing, or a path leaves its archive."""


@dataclass(frozen=True)
class Tolerance:
    """How far an output may be from its reference: max|error| <= max(atol, rtol * max|reference|)."""

    rtol: float
    atol: float


@dataclass(frozen=True)
class Entry:
    """One model: where it is, what it must be, and how it is run."""

    id: str
    kind: str
    """"onnx" or "torch"."""
    category: str
    license: str
    package: str
    """Name of the PyPI package whose wheel holds the file."""
    version: str
    file: str
    """Path of the model inside the wheel."""
    size: int
    """Size of the model file in bytes."""
    sha256: str
    compare: Tolerance
    inputs: tuple[Mapping[str, Any], ...] = ()
    """Input sets, each as `graphopt.tools.inputs.make_inputs` takes it."""
    extra_files: Mapping[str, str] = field(default_factory=dict)
    """Further members of the wheel that belong to the model, with their sha256."""
    notes: str = ""

    def __post_init__(self) -> None:
        for path in (self.id, *self.members):
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path:
                raise ManifestError(f"model {self.id!r}: {path!r} is not a plain relative path")
        if "/" in self.id:
            raise ManifestError(f"model {self.id!r}: an id names a folder and holds no '/'")

    @property
    def members(self) -> Mapping[str, str]:
        """Every file to fetch, with its sha256; the model itself comes last."""
        return {**self.extra_files, self.file: self.sha256}


def parse(text: str) -> dict[str, Entry]:
    """The entries of a manifest by id, in its order.

    Raises:
        ManifestError: an entry lacks a field, has an unknown one, or holds a path that leaves its folder.
    """
    document = json.loads(text)
    return {model["id"]: _entry(model, document["compare"]) for model in document["models"]}


def _entry(model: Mapping[str, Any], compare: Mapping[str, float]) -> Entry:
    fields = {**model, "inputs": tuple(model.get("inputs", ()))}
    fields["compare"] = Tolerance(**model.get("compare", compare))
    try:
        return Entry(**fields)
    except TypeError as error:
        raise ManifestError(f"model {model['id']!r}: {error}") from None


@cache
def zoo() -> Mapping[str, Entry]:
    """The models of the project's own manifest."""
    return parse(files("graphopt.tools").joinpath("zoo.json").read_text(encoding="utf-8"))

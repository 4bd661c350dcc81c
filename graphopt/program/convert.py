"""A program's graphs in the storage of another backend, each compared with what it was."""

from __future__ import annotations

from graphopt.errors import UnsupportedError
from graphopt.ir.model import Model
from graphopt.program.program import Program
from graphopt.verify.whole import compare_conversion


def convert_program(program: Program, target: str) -> Program:
    """`program` with its graphs as the backend `target` runs them; itself if they are already.

    Raises:
        UnsupportedError: a graph cannot be said there, or does not compute the same there.
    """
    from graphopt.compiler import make_backend

    backend = make_backend(target)

    def change(name: str, model: Model) -> Model:
        converted = backend.convert(model)
        if converted is not model:
            verdict = compare_conversion(model, converted)
            if not verdict.ok:
                raise UnsupportedError(
                    f"{name} does not compute the same after its conversion from {model.storage} to "
                    f"{converted.storage}: {verdict}"
                )
        return converted

    return program.map_models(change)

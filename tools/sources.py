"""Models that the command line is given: a file, or a function of the user's that makes one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from graphopt.errors import ModelError


def model_of(source: str) -> tuple[Any, Any]:
    """What `source` names, and the inputs to trace it with, None if it needs none.

    Args:
        source: path of a model file, or "package.module:function". The function takes nothing and returns whatever
            `graphopt.lower` takes, or a pair of a torch module and its example inputs. Its module is imported, from the
            current folder too, and so runs.

    Raises:
        ModelError: no such module or function, or the function raises.
    """
    module, colon, function = source.rpartition(":")
    if not colon or Path(source).exists() or not all(part.isidentifier() for part in (*module.split("."), function)):
        return Path(source), None
    made = _called(source, module, function)
    return made if isinstance(made, tuple) and len(made) == 2 else (made, None)


def _called(source: str, module: str, function: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # Whatever the code of the module raises.
        raise ModelError(
            f"{source}: cannot be imported ({type(error).__name__}: {error}); expected a model file, or "
            "PACKAGE.MODULE:FUNCTION, a function that takes nothing and returns a model, or a torch module and its "
            "example inputs"
        ) from error
    try:
        return found()
    except Exception as error:
        raise ModelError(f"{source}: the function raised {type(error).__name__}: {error}") from error

"""The errors that graphopt raises: a small tree, so that callers can catch what they can act on.

A message says what went wrong, where (file, node or rule), what was expected, what was found and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GraphoptError(Exception):
    """The root of every error that graphopt raises on purpose, but for the ValueError of an object that is given a
    value which it cannot have."""


class ModelError(GraphoptError):
    """The model cannot be taken: not a model, truncated, missing or escaping external data, no example inputs."""


class UnsupportedError(GraphoptError):
    """A valid request that cannot be carried out exactly: an op without a meaning, a kernel that does not exist."""


class PipelineError(GraphoptError):
    """A pipeline that cannot be built: unknown pass, bad option, a pass whose requirements do not hold."""


class RegistryError(GraphoptError):
    """Two plug-ins claim one name, or a plug-in cannot be loaded."""


class MissingExtraError(GraphoptError):
    """A feature needs a package that is not installed; the message says which extra installs it."""


class RuleError(GraphoptError):
    """A rule is broken: its pattern is malformed, or it does not tell the truth about what it changed."""


class InputError(GraphoptError, ValueError):
    """A compiled or optimised model was called with inputs that are not its own."""


class VerificationError(GraphoptError):
    """The result of a whole pipeline does not agree with the model it started from."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for messages with at most three of `known` that look like `name`; empty if none does."""
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""

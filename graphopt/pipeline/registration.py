"""`graphopt.register`: make a pass or a backend known in this process."""

from __future__ import annotations

from typing import Any

from graphopt.errors import RegistryError
from graphopt.pipeline.backend import Backend
from graphopt.pipeline.pass_ import Pass
from graphopt.pipeline.registry import backends, passes


def register(plugin: Any, name: str | None = None, *, replace: bool = False) -> Any:
    """Make a pass class or a backend known by `name` (by default its own); returns it, so it works as a decorator.

    Raises:
        RegistryError: the name is taken, or `plugin` is neither a pass class nor a backend.
    """
    kind = plugin if isinstance(plugin, type) else type(plugin)
    if isinstance(plugin, Pass):
        raise RegistryError(f"{plugin!r} is an object: register its class, {kind.__qualname__}")
    if issubclass(kind, Pass):
        return passes().register(plugin, name, replace=replace)
    if issubclass(kind, Backend):
        return backends().register(plugin, name, replace=replace)
    raise RegistryError(
        f"{plugin!r} is neither a Pass nor a Backend; derive it from graphopt.RulePass or graphopt.Backend"
    )

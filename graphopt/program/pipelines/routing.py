"""Components of an accelerated pipeline: copies, of a subclass that tells the accelerator of calls."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ROUTE = "_graphopt"
"""The attribute of a routed component that holds its accelerator."""


@dataclass(frozen=True)
class Call:
    """A call of a routed method."""

    component: Any
    method: Any
    """The class's own, unbound."""
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    signature: inspect.Signature
    """Of the method with `self`."""

    def pass_on(self) -> Any:
        """What the component's own class does."""
        return self.method(self.component, *self.args, **self.kwargs)

    def arguments(self) -> dict[str, Any]:
        """By name, without `self` and without those left at their defaults."""
        given = dict(self.signature.bind(self.component, *self.args, **self.kwargs).arguments)
        own, *parameters = self.signature.parameters.values()
        del given[own.name]
        for parameter in parameters:
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= given.pop(parameter.name, {})
        return given


def routed(component: Any, accelerator: Any, methods: tuple[str, ...]) -> Any:
    """`component` itself, of a subclass of its class.

    Each of `methods` that it has becomes `accelerator.<method>(Call)`.
    """
    base = type(component)
    own = {name: _route(getattr(base, name), name) for name in methods if hasattr(base, name)}
    # Name and module are what save_pretrained writes.
    subclass = type(base.__name__, (base,), {**own, "__module__": base.__module__, "_graphopt_base": base})
    object.__setattr__(component, "__class__", subclass)
    component.__dict__[ROUTE] = accelerator
    return component


def unrouted(component: Any) -> Any:
    """`component` without the routes of an accelerated pipeline: a shallow copy if it has some."""
    base = getattr(type(component), "_graphopt_base", None)
    if base is None:
        return component
    plain = base.__new__(base)
    plain.__dict__.update({name: value for name, value in component.__dict__.items() if name != ROUTE})
    return plain


def _route(method: Any, name: str) -> Any:
    signature = inspect.signature(method)

    @functools.wraps(method)
    def route(self: Any, *args: Any, **kwargs: Any) -> Any:
        accelerator = self.__dict__.get(ROUTE)
        if accelerator is None:  # made from the class, not by an accelerated pipeline
            return method(self, *args, **kwargs)
        return getattr(accelerator, name)(Call(self, method, args, kwargs, signature))

    return route

"""Where names of passes and backends come from: entry points of installed packages, and `register`.

Names are listed from package metadata alone: nothing is imported until a name is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, overload

from graphopt.errors import GraphoptError, PipelineError, RegistryError, did_you_mean
from graphopt.pipeline.spec import is_name

T = TypeVar("T")


@dataclass(frozen=True)
class _Claim:
    """A name and who claims it: an entry point to load, or an object that was registered."""

    name: str
    target: str
    """module:attribute"""
    distribution: str | None
    """Distribution and version, None for a registered object."""
    load: Callable[[], Any]

    def __str__(self) -> str:
        return f"{self.target} ({self.distribution or 'registered in this process'})"


class Registry:
    """The objects of one entry-point group by name.

    Entry points are read once, when a name is first asked for.

    Raises:
        RegistryError: from every method, if two installed plug-ins claim the same name.
    """

    def __init__(self, group: str, noun: str) -> None:
        """
        Args:
            group: entry-point group, such as "graphopt.passes".
            noun: what an object of the group is called in messages, such as "pass".
        """
        self.group = group
        self.noun = noun
        self._registered: dict[str, _Claim] = {}
        self._loaded: dict[_Claim, Any] = {}

    @functools.cached_property
    def _installed(self) -> dict[str, _Claim]:
        claims: dict[str, _Claim] = {}
        for entry in entry_points(group=self.group):
            claim = _Claim(entry.name, entry.value, _distribution(entry), entry.load)
            other = claims.setdefault(entry.name, claim)
            if (other.target, other.distribution) != (claim.target, claim.distribution):
                raise self._clash(other, claim, "uninstall one of the two packages")
        return claims

    def names(self) -> tuple[str, ...]:
        """Every known name, sorted. Imports nothing."""
        return tuple(sorted({*self._installed, *self._registered}))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self._registered or name in self._installed

    def owner(self, name: str) -> str:
        """Who provides `name`: "module:attribute (distribution version)". Imports nothing."""
        return str(self._claim(name))

    def get(self, name: str) -> Any:
        """The object called `name`; its module is imported now if it was not before.

        Raises:
            PipelineError: unknown name; the message has the nearest ones.
            RegistryError: the plug-in cannot be imported, or calls its object by another name.
        """
        claim = self._claim(name)
        if claim not in self._loaded:
            self._loaded[claim] = self._load(claim)
        return self._loaded[claim]

    @overload
    def register(self, obj: T, name: str | None = None, *, replace: bool = False) -> T: ...

    @overload
    def register(
        self, obj: None = None, name: str | None = None, *, replace: bool = False
    ) -> Callable[[T], T]: ...

    def register(self, obj: Any = None, name: str | None = None, *, replace: bool = False) -> Any:
        """Make `obj` known in this process; also a decorator, with or without arguments.

        Defining the same class again, as a notebook cell that is run twice does, replaces the older one.

        Args:
            obj: a pass class or a backend.
            name: its name; `obj.name` if not given.
            replace: take the name over from whoever has it.

        Returns:
            `obj`, or a decorator if `obj` is not given.

        Raises:
            RegistryError: the name is claimed already; the message has both owners.
        """
        if obj is None:
            return functools.partial(self.register, name=name, replace=replace)
        claim = self._claim_of(obj, name)
        holder = self._registered.get(claim.name) or self._installed.get(claim.name)
        same_owner = holder is not None and (holder.target, holder.distribution) == (claim.target, None)
        if holder is not None and not replace and not same_owner:
            raise self._clash(holder, claim, "choose another name or register with replace=True")
        self._registered[claim.name] = claim
        return obj

    def _claim_of(self, obj: Any, name: str | None) -> _Claim:
        name = name or getattr(obj, "name", None)
        if not isinstance(name, str):
            raise RegistryError(f"{obj!r} has no attribute `name`; give it one or register(obj, name)")
        if not is_name(name):
            raise RegistryError(f"{name!r} cannot be written in a pipeline: expected letters, digits, '_', '-' and '.'")
        self._check_name(obj, name, f"register({name!r})")
        named = obj if hasattr(obj, "__qualname__") else type(obj)
        return _Claim(name, f"{named.__module__}:{named.__qualname__}", None, lambda: obj)

    def _claim(self, name: str) -> _Claim:
        claim = self._registered.get(name) or self._installed.get(name)
        if claim is None:
            hint = did_you_mean(name, self.names())
            known = ", ".join(self.names()) or "none"
            raise PipelineError(f"unknown {self.noun} {name!r}{hint}; known: {known}")
        return claim

    def _load(self, claim: _Claim) -> Any:
        where = f"{self.noun} {claim.name!r}, entry point {claim}"
        try:
            obj = claim.load()
        except GraphoptError:
            raise  # says what to do already, such as which extra is missing
        except Exception as error:  # a plug-in's import may fail in any way
            raise RegistryError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
        self._check_name(obj, claim.name, where)
        return obj

    def _check_name(self, obj: Any, name: str, where: str) -> None:
        own = getattr(obj, "name", name)
        if own != name:
            raise RegistryError(f"{where}: the object calls itself {own!r}; both names must be the same")

    def _clash(self, first: _Claim, second: _Claim, advice: str) -> RegistryError:
        return RegistryError(f"{self.noun} {first.name!r} is claimed by {first} and by {second}; {advice}")


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown distribution"


@functools.cache
def passes() -> Registry:
    """The passes of this process."""
    return Registry("graphopt.passes", "pass")


@functools.cache
def backends() -> Registry:
    """The backends of this process."""
    return Registry("graphopt.backends", "backend")

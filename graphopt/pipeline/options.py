"""Options of a pass between text and typed values, decided by the type hints of the pass's fields.

Types: int, float, bool, str, `Literal[...]`, `T | None` (None is written `none`), unions of these,
`tuple[T, ...]` and `tuple[T1, T2]`. A field `max_rank` is the option `max-rank`. Writing is checked by
reading back: a value that the text cannot say exactly is an error and never a different value.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

from graphopt.errors import PipelineError, did_you_mean
from graphopt.pipeline.spec import OptionValue

_NONE = "none"
_TRUE, _FALSE = ("true", "1"), ("false", "0")
_INT = re.compile(r"[+-]?[0-9]+")


class _Mismatch(Exception):
    """A text is not of a type; carries what was expected."""


def option_name(field_name: str) -> str:
    """How a field is written in a pipeline: `max_rank` is `max-rank`."""
    return field_name.replace("_", "-")


def option_fields(owner: type) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """Option name to (dataclass field, type) of the frozen dataclass `owner`.

    Raises:
        PipelineError: if `owner` is not a frozen dataclass or a type hint of it cannot be resolved.
    """
    try:
        hints = typing.get_type_hints(owner)
    except NameError as error:
        raise PipelineError(
            f"{owner.__qualname__}: the type of an option cannot be resolved ({error}); import it at run time"
        ) from error
    own = [name for name in vars(owner).get("__annotations__", ()) if not _is_class_variable(hints[name])]
    if own and "__dataclass_params__" not in vars(owner):
        raise PipelineError(
            f"{owner.__qualname__} has the option {own[0]!r} but is no dataclass: add @dataclass(frozen=True)"
        )
    fields = dataclasses.fields(owner) if dataclasses.is_dataclass(owner) else ()
    return {option_name(f.name): (f, hints[f.name]) for f in fields if f.init}


def _is_class_variable(hint: Any) -> bool:
    return hint is typing.ClassVar or typing.get_origin(hint) is typing.ClassVar


def parse_options(owner: type, name: str, options: Mapping[str, OptionValue]) -> dict[str, Any]:
    """The keyword arguments that `options`, read for pass `name`, stand for.

    Raises:
        PipelineError: unknown or missing option, or a value that is not of the option's type.
    """
    known = option_fields(owner)
    values = {}
    for key, given in options.items():
        if key not in known:
            hint = did_you_mean(key, known)
            raise PipelineError(f"pass {name!r}: unknown option {key!r}{hint}; {_takes(known)}")
        field, type_ = known[key]
        try:
            values[field.name] = _parse(type_, given)
        except _Mismatch as mismatch:
            raise PipelineError(
                f"pass {name!r}, option {key!r}: expected {mismatch}, got {_shown(given)}"
            ) from None
    for key, (field, _) in known.items():
        if field.name not in values and default_of(field) is MISSING:
            raise PipelineError(f"pass {name!r}: option {key!r} must be given; {_takes(known)}")
    return values


MISSING = dataclasses.MISSING


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Default value of a field, `MISSING` if it must be given."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def option_value(owner: str, key: str, hint: Any, value: Any) -> str | tuple[str, ...]:
    """The text of `value` for an option of type `hint`.

    Raises:
        PipelineError: if the text would not be read back as the same value.
    """
    text = _write(value)
    try:
        back = _parse(hint, text)
    except _Mismatch:
        raise PipelineError(f"pass {owner!r}, option {key!r}: expected {type_text(hint)}, got {value!r}") from None
    if back != value or not _same_types(back, value):
        raise PipelineError(f"pass {owner!r}, option {key!r}: {value!r} cannot be written in a pipeline")
    return text


def type_text(hint: Any) -> str:
    """A type as it is told to users: "float", "tuple of str", "one of relu, gelu", "int or none"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return _NONE
    if origin is Literal:
        return "one of " + ", ".join(_write_scalar(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(a) for a in arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is ...:
        return f"tuple of {type_text(arguments[0])}"
    if origin is tuple:
        return f"tuple of ({', '.join(type_text(a) for a in arguments)})"
    return getattr(hint, "__name__", str(hint))


def _parse(hint: Any, given: OptionValue) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _parse_union(hint, given)
    if origin is tuple:
        return _parse_tuple(hint, arguments, given)
    if hint is bool and given is True:
        return True
    if not isinstance(given, str):
        advice = ' in quotes if it has commas: "..."' if hint is str and given is not True else ""
        raise _Mismatch(type_text(hint) + advice)
    return _parse_scalar(hint, arguments if origin is Literal else None, given)


def _parse_union(hint: Any, given: OptionValue) -> Any:
    members = typing.get_args(hint)
    if type(None) in members and given == _NONE:
        return None
    for member in members:
        if member is not type(None):
            try:
                return _parse(member, given)
            except _Mismatch:
                continue
    raise _Mismatch(type_text(hint))


def _parse_tuple(hint: Any, arguments: tuple[Any, ...], given: OptionValue) -> tuple[Any, ...]:
    if given is True:
        raise _Mismatch(type_text(hint))
    elements = given if isinstance(given, tuple) else (given,)
    if len(arguments) == 2 and arguments[1] is ...:
        return tuple(_parse(arguments[0], e) for e in elements)
    if len(arguments) != len(elements):
        raise _Mismatch(type_text(hint))
    return tuple(_parse(a, e) for a, e in zip(arguments, elements, strict=True))


def _parse_scalar(hint: Any, choices: tuple[Any, ...] | None, text: str) -> Any:
    if choices is not None:
        for choice in choices:
            if _write_scalar(choice) == text:
                return choice
    elif hint is str:
        return text
    elif hint is bool and text in _TRUE + _FALSE:
        return text in _TRUE
    elif hint is int and _INT.fullmatch(text):
        return int(text)
    elif hint is float:
        return _parse_float(text)
    elif hint not in (bool, int):
        raise PipelineError(
            f"options of type {type_text(hint)} are not supported; "
            "use int, float, bool, str, Literal, None or tuples of these"
        )
    raise _Mismatch(type_text(hint))


def _parse_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value:
        raise _Mismatch("float")
    return value


def _write(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, tuple):
        texts = tuple(_write_scalar(v) for v in value)
        return texts[0] if len(texts) == 1 else texts
    return _write_scalar(value)


def _write_scalar(value: Any) -> str:
    if value is None:
        return _NONE
    if isinstance(value, bool):
        return _TRUE[0] if value else _FALSE[0]
    return value if isinstance(value, str) else repr(value)


def _same_types(a: Any, b: Any) -> bool:
    """Whether `b` may be written as what is read back as `a`, which is equal to it."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return all(_same_types(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) or (type(a), type(b)) == (float, int)  # 1 is a float like any other


def _takes(known: Mapping[str, tuple[dataclasses.Field[Any], Any]]) -> str:
    if not known:
        return "it takes no options"
    return "it takes " + ", ".join(f"{key} ({type_text(hint)})" for key, (_, hint) in known.items())


def _shown(given: OptionValue) -> str:
    if given is True:
        return "the option without a value"
    return repr(",".join(given)) if isinstance(given, tuple) else repr(given)

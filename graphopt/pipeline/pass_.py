"""What a pass is: a frozen dataclass whose fields are its options.

    @dataclass(frozen=True)
    class LowRank(RulePass):
        "Replaces a linear layer by two thinner ones. Mathematics, preconditions, source."

        name: ClassVar[str] = "low-rank"
        contract: ClassVar[str] = "Approximate: the user's metric stays within the user's budget"

        energy: float = 0.99
        "Share of the squared singular values that is kept, in (0, 1]."

        def rules(self) -> Sequence[Rule]: ...

In a pipeline it is written `low-rank{energy=0.95}`. A pass checks the values of its options in
`__post_init__` and raises ValueError there.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from graphopt.errors import PipelineError
from graphopt.pipeline.field_docs import field_docs
from graphopt.pipeline.options import (
    MISSING,
    default_of,
    option_fields,
    option_value,
    parse_options,
    type_text,
)
from graphopt.pipeline.spec import PassSpec, value_text

if TYPE_CHECKING:
    from graphopt.pipeline.context import Context, RunContext
    from graphopt.program.program import Program
    from graphopt.rewrite.rule import Rule


@dataclass(frozen=True)
class Pass(ABC):
    """One step of a pipeline. Passes hold no state: options in, what they did goes into the report."""

    name: ClassVar[str]
    """Command-line name; also the name of the entry point."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Properties that a model must have before the pass runs. At first it has one, the name of its storage ("onnx" or
    "fx"); passes before this one ensure others."""
    ensures: ClassVar[tuple[str, ...]] = ()
    """Properties that the model has afterwards."""
    contract: ClassVar[str] = ""
    """What the pass promises about numbers, in a sentence."""

    def __str__(self) -> str:
        return str(pass_to_spec(self))


@dataclass(frozen=True)
class RulePass(Pass):
    """A pass made of rules: the driver matches, rewrites and verifies them one application at a time."""

    @abstractmethod
    def rules(self) -> Sequence[Rule]:
        """The rules, in the order in which they are tried on a node."""


@dataclass(frozen=True)
class GraphPass(Pass):
    """A pass that looks at whole graphs, as dead code or common subexpressions need."""

    @abstractmethod
    def run(self, context: Context) -> None:
        """Edit the model of `context` through `context.editor(graph)`, so that every change has an id, a
        verdict and a line in the report."""


@dataclass(frozen=True)
class ProgramPass(Pass):
    """A pass over a sampling program: the denoising loop, its schedule and its stages."""

    @abstractmethod
    def run(self, program: Program, context: RunContext) -> Program:
        """The program rewritten; programs are immutable, so `program` itself stays as it is.

        Every application takes an id from `context.ledger` and is recorded there with its evidence, kept or
        undone. A pass that changes nothing returns `program`.
        """


class _Passes(Protocol):
    def get(self, name: str) -> Any: ...


def find_class(name: str, registry: _Passes) -> type[Pass]:
    """The class of the pass called `name`. Raises PipelineError if there is none, or something that is no pass."""
    found = registry.get(name)
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise PipelineError(f"{name!r} is not a pass: expected a subclass of Pass, got {found!r}")
    return found


def instantiate(spec: PassSpec, registry: _Passes) -> Pass:
    """The pass that `spec` names, with its options.

    Args:
        spec: a name and options as text.
        registry: where names are looked up, usually `graphopt.pipeline.registry.passes()`.

    Raises:
        PipelineError: unknown pass or option, a value of the wrong type or one that the pass refuses.
    """
    pass_class = find_class(spec.name, registry)
    values = parse_options(pass_class, spec.name, spec.options)
    try:
        return pass_class(**values)
    except (ValueError, TypeError) as error:
        raise PipelineError(f"pass {spec.name!r}: {error}") from error


def pass_to_spec(pass_: Pass) -> PassSpec:
    """`pass_` as text: its name and those options that differ from their defaults.

    Raises:
        PipelineError: if the value of an option cannot be said exactly.
    """
    options = {}
    for key, (field, hint) in option_fields(type(pass_)).items():
        value = getattr(pass_, field.name)
        default = default_of(field)
        if default is MISSING or value != default:
            options[key] = option_value(pass_.name, key, hint, value)
    return PassSpec(pass_.name, options)


def describe(pass_class: type[Pass]) -> dict[str, Any]:
    """What is to be known of a pass, as JSON-able data.

    Every option has its name, type, doc and default as it is written in a pipeline; the default is None if
    the option must be given.
    """
    return {
        "name": pass_class.name,
        "kind": _kind(pass_class),
        "doc": _class_doc(pass_class),
        "contract": pass_class.contract,
        "requires": list(pass_class.requires),
        "ensures": list(pass_class.ensures),
        "owner": f"{pass_class.__module__}:{pass_class.__qualname__}",
        "options": _describe_options(pass_class),
    }


def _kind(pass_class: type[Pass]) -> str:
    kinds = {RulePass: "rules", GraphPass: "graph", ProgramPass: "program"}
    return next((kind for base, kind in kinds.items() if issubclass(pass_class, base)), "pass")


def _class_doc(pass_class: type[Pass]) -> str:
    doc = inspect.cleandoc(pass_class.__doc__ or "")
    made_by_dataclass = doc.startswith(f"{pass_class.__name__}(")
    return "" if made_by_dataclass else doc


def _describe_options(pass_class: type[Pass]) -> list[dict[str, Any]]:
    docs = field_docs(pass_class)
    described = []
    for key, (field, hint) in option_fields(pass_class).items():
        default = default_of(field)
        text = None if default is MISSING else value_text(option_value(pass_class.name, key, hint, default))
        doc = docs.get(field.name, "")
        described.append({"name": key, "type": type_text(hint), "default": text, "doc": doc})
    return described

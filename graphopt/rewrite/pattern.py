"""Patterns: what a rule looks for, said in the vocabulary.

A rule's `pattern` method receives `op` and one `Var` per further parameter and returns an `OpPattern`:

    def pattern(self, op, x, w, b):
        return op.relu(op.conv(x, const(w), opt(const(b)), stride=any_).named("conv"))

A constant is captured or compared, never a silent wildcard; a field that is not mentioned must have its default
value; a field given as `any_` may have any value.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from graphopt.errors import RuleError, did_you_mean
from graphopt.ir.ops import OPS
from graphopt.ir.ops.spec import Op


class _Any:
    def __repr__(self) -> str:
        return "any_"


any_ = _Any()
"""A field whose value the pattern does not restrict."""


class Pattern:
    """Base of everything that can stand for an operand."""

    __slots__ = ()


class Var(Pattern):
    """Any value; used twice, it must be the same value both times."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


class Const(Pattern):
    """A constant: captured under `name`, or one whose every element equals `value`."""

    __slots__ = ("name", "value")

    def __init__(self, name: str | None, value: float | None = None) -> None:
        self.name = name
        self.value = value


class Opt(Pattern):
    """An operand that may be absent; then its variables are bound to None."""

    __slots__ = ("inner",)

    def __init__(self, inner: Pattern) -> None:
        self.inner = inner


class Many(Pattern):
    """All operands of a variadic op, bound as a tuple."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class AnyOf(Pattern):
    """The first alternative for which the whole pattern matches."""

    __slots__ = ("alternatives",)

    def __init__(self, alternatives: tuple[Pattern, ...]) -> None:
        self.alternatives = alternatives


class OpPattern(Pattern):
    """One output of one op."""

    __slots__ = ("op", "spec", "operands", "fields", "name", "output", "checks", "arity", "commutative")

    def __init__(self, op: str, operands: tuple[Pattern, ...], fields: dict[str, Any]) -> None:
        self.op = op
        self.spec: Op | None = OPS.get(op)
        self.operands = operands
        self.fields = fields
        self.name: str | None = None
        self.output = 0
        self.checks: tuple[tuple[str, Any], ...] = tuple((k, v) for k, v in fields.items() if v is not any_)
        self.arity = len(operands)
        self.commutative = self.arity == 2 and self.spec is not None and self.spec.commutative
        """Whether the two operands may stand in either order."""

    def __repr__(self) -> str:
        return f"op.{self.op}(...)"

    def named(self, name: str) -> OpPattern:
        """Make the matched call available as `m.<name>`."""
        self.name = name
        return self

    def __getitem__(self, index: int) -> OpPattern:
        """The pattern for another output of the same node."""
        if self.spec is not None and self.spec.outputs is not None and not 0 <= index < self.spec.outputs:
            raise RuleError(f"op.{self.op}(...)[{index}]: {self.op} has {self.spec.outputs} outputs, counted from 0")
        other = OpPattern(self.op, self.operands, self.fields)
        other.name, other.output = self.name, index
        return other


def const(operand: Var | float) -> Const:
    """`const(w)` captures a constant as `m.w`; `const(0.5)` is a constant all of whose elements equal 0.5."""
    if isinstance(operand, Var):
        return Const(operand.name)
    if not isinstance(operand, bool | int | float):
        raise RuleError(f"const(...) is given {operand!r}: expected a variable of the pattern or a number")
    return Const(None, float(operand))


def opt(operand: Pattern | float) -> Opt:
    """An operand that may be absent."""
    return Opt(_operand(operand))


def many(operand: Var) -> Many:
    """Every operand of a variadic op (`op.concat(many(xs), axis=any_)`)."""
    if not isinstance(operand, Var):
        raise RuleError(f"many(...) is given {operand!r}: expected a variable of the pattern")
    return Many(operand.name)


def any_of(*alternatives: Pattern | float) -> AnyOf:
    """Alternatives, tried in order with full backtracking."""
    if not alternatives:
        raise RuleError("any_of() has no alternatives: give it two patterns or more")
    return AnyOf(tuple(map(_operand, alternatives)))


class PatternOps:
    """`op` inside a rule's pattern: `op.<name>(*operands, **fields)` for every op of the vocabulary."""

    def __getattr__(self, name: str) -> Callable[..., OpPattern]:
        spec = OPS.get(name.rstrip("_"))
        if spec is None:
            raise RuleError(
                f"op.{name}: the vocabulary has no such op{did_you_mean(name, OPS)}; op.raw(name, ...) matches an op "
                "of one storage"
            )

        def make(*operands: Any, **fields: Any) -> OpPattern:
            if unknown := set(fields) - set(spec.fields):
                raise RuleError(f"op.{name} has no field {sorted(unknown)[0]!r}; it has {sorted(spec.fields)}")
            if not spec.variadic and len(operands) > len(spec.operands):
                raise RuleError(f"op.{name} takes {len(spec.operands)} operands {spec.operands}, not {len(operands)}")
            if missing := [o for o in spec.operands[len(operands) :] if o not in spec.optional and not spec.variadic]:
                raise RuleError(f"op.{name} is not given {missing[0]!r}; its operands are {', '.join(spec.operands)}")
            return OpPattern(spec.name, tuple(_operand(o) for o in operands), fields)

        return make

    @staticmethod
    def raw(name: str, *operands: Any, **fields: Any) -> OpPattern:
        """An op by its storage's own name ("com.microsoft::QuickGelu", "aten.roll.default"): matches there only, and
        every attribute that the node has must be mentioned."""
        return OpPattern(name, tuple(_operand(o) for o in operands), fields)


def _operand(value: Any) -> Pattern:
    if isinstance(value, Pattern):
        return value
    if isinstance(value, bool | int | float):
        return Const(None, float(value))
    raise RuleError(f"an operand must be a pattern, a variable or a number, not {value!r}")


def build_pattern(method: Callable[..., Any]) -> tuple[OpPattern, ...]:
    """Call a rule's `pattern` method with one variable per parameter; returns its roots."""
    names = list(inspect.signature(method).parameters)[1:]
    try:
        roots = method(PatternOps(), *(Var(n) for n in names))
    except RuleError:
        raise
    except Exception as error:
        raise RuleError(
            f"{method.__qualname__} raised {type(error).__name__}: {error}; it is a method pattern(self, op, x, ...) "
            "with a parameter for each variable"
        ) from error
    roots = roots if isinstance(roots, tuple) else (roots,)
    if not roots or not all(isinstance(r, OpPattern) for r in roots):
        raise RuleError(f"{method.__qualname__} must return op patterns, not {roots!r}")
    for part in (p for root in roots for p in walk(root)):
        if any(isinstance(c, Many) for c in children(part)) and not (isinstance(part, OpPattern) and part.arity == 1):
            raise RuleError(f"{method.__qualname__}: many(...) stands for all operands of an op: give it no other")
    called = {part.name for root in roots for part in walk(root) if isinstance(part, OpPattern)}
    if both := [name for name in names if name in called]:
        raise RuleError(f"{method.__qualname__}: {both[0]!r} is a variable and the name of an op; rename one of them")
    return roots


def walk(pattern: Pattern) -> Iterator[Pattern]:
    """`pattern` and everything below it, depth first."""
    yield pattern
    for child in children(pattern):
        yield from walk(child)


def children(pattern: Pattern) -> tuple[Pattern, ...]:
    """What `pattern` is directly made of."""
    match pattern:
        case OpPattern():
            return pattern.operands
        case Opt():
            return (pattern.inner,)
        case AnyOf():
            return pattern.alternatives
    return ()


def depth(pattern: Pattern) -> int:
    """Number of ops on the longest path from the root."""
    match pattern:
        case OpPattern():
            return 1 + max((depth(o) for o in pattern.operands), default=0)
        case Opt():
            return depth(pattern.inner)
        case AnyOf():
            return max(depth(a) for a in pattern.alternatives)
    return 0

"""Matching one pattern at one node: pure, deterministic, with full backtracking and reasons that cost nothing.

A failure is a `NoMatch` that remembers how far the attempt came and what stopped it; its text is made only when
somebody reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias

import numpy as np

from graphopt.ir.graph import Call, Graph, Literal, Node, Unreadable, Value
from graphopt.ir.ops.spec import REQUIRED
from graphopt.ir.weights import TensorRef
from graphopt.rewrite.pattern import AnyOf, Const, Many, OpPattern, Opt, Pattern, Var, walk

UNIFORM_LIMIT = 65536
"""Largest constant whose elements are read to compare it with a number."""


class Name(str):
    """The name of a value or node inside a reason: left out where reasons are counted."""

    __slots__ = ()


class NoMatch:
    """Why a pattern did not match. `score` counts the parts that did; `node` is where it stopped."""

    __slots__ = ("template", "values", "node", "score")

    def __init__(self, template: str, values: tuple[Any, ...] = (), node: Node | None = None, score: int = 0) -> None:
        self.template = template
        self.values = values
        self.node = node
        self.score = score

    def __bool__(self) -> bool:
        return False

    @property
    def reason(self) -> str:
        return self._filled(self.values)

    @property
    def kind(self) -> str:
        """The reason without the names in it: equal for refusals of one kind."""
        return self._filled(tuple("…" if isinstance(v, Name) else v for v in self.values))

    def _filled(self, values: tuple[Any, ...]) -> str:
        """The template with `values`; it is anybody's text, and may have other places than it is given values."""
        if not values:
            return self.template
        try:
            return self.template.format(*values)
        except (LookupError, ValueError, TypeError, AttributeError):
            return f"{self.template} {values}"

    def __repr__(self) -> str:
        return f"NoMatch({self.reason!r})"


class Bindings:
    """What a successful attempt bound: values by variable, calls by name, and every matched call."""

    __slots__ = ("values", "constants", "named", "calls", "roots")

    def __init__(self) -> None:
        self.values: dict[str, Value | tuple[Value, ...] | None] = {}
        self.constants: dict[str, TensorRef] = {}
        self.named: dict[str, Call] = {}
        self.calls: dict[Node, Call] = {}
        self.roots: list[Value] = []

    def copy(self) -> Bindings:
        other = Bindings()
        for name in Bindings.__slots__:
            setattr(other, name, getattr(self, name).copy())
        return other


Goals: TypeAlias = "tuple[Pattern, Value | None, Goals] | None"
"""What is still to be matched, the next one first: a linked list, so that alternatives share their tails."""


class Matcher:
    """A compiled pattern: `match(graph, node)` tries to match it with its first root at `node`."""

    def __init__(self, roots: Sequence[OpPattern]) -> None:
        self.roots = tuple(roots)
        self.key = roots[0].op
        self.needs = _needs(roots[0])

    def may_match(self, keys: AbstractSet[str]) -> bool:
        """Whether a node whose operands are computed by nodes of these keys can be the first root."""
        return not any(need.isdisjoint(keys) for need in self.needs)

    def match(self, graph: Graph, node: Node) -> Bindings | NoMatch:
        attempt = _Attempt(graph, self.roots)
        found = attempt.match_root(node, Bindings())
        return attempt.best if found is None else found


def _needs(root: OpPattern) -> tuple[frozenset[str], ...]:
    """For each operand that must be computed by an op of the vocabulary, the keys that the op may have."""
    needs = []
    for operand in root.operands:
        alternatives = operand.alternatives if isinstance(operand, AnyOf) else (operand,)
        ops = [a for a in alternatives if isinstance(a, OpPattern) and a.spec is not None]
        if len(ops) == len(alternatives):
            needs.append(frozenset(a.op for a in ops))
    return tuple(needs)


NOTHING = NoMatch("no attempt was made", score=-1)


class _Attempt:
    """One attempt: goals are solved left to right; every choice point tries its alternatives on copies."""

    __slots__ = ("graph", "roots", "best")

    def __init__(self, graph: Graph, roots: tuple[OpPattern, ...]) -> None:
        self.graph = graph
        self.roots = roots
        self.best = NOTHING

    def _fail(self, bindings: Bindings, node: Node | None, template: str, *values: Any) -> None:
        """Note why the attempt ends here, if none has come further."""
        score = len(bindings.calls)
        if score > self.best.score:
            self.best = NoMatch(template, values, node, score)

    # ---- search --------------------------------------------------------------------------------------------

    def match_root(self, node: Node, bindings: Bindings) -> Bindings | None:
        """Match the next root at `node`, then whatever is left to be matched."""
        pattern = self.roots[len(bindings.roots)]
        call = self._call(pattern, node, bindings)
        if call is None:
            return None
        bindings.roots.append(call.outputs[pattern.output] if pattern.output < len(call.outputs) else None)
        options = self._operands(pattern, call, bindings, None)
        return self._solve(options[0], bindings) if len(options) == 1 else self._choose(options, bindings)

    def _choose(self, options: Sequence[Goals], bindings: Bindings) -> Bindings | None:
        for option in options:
            found = self._solve(option, bindings.copy())
            if found is not None:
                return found
        return None

    def _solve(self, goals: Goals, bindings: Bindings) -> Bindings | None:
        values = bindings.values
        while goals is not None:
            pattern, value, goals = goals
            if type(pattern) is Var and value is not None:
                known = values.setdefault(pattern.name, value)
                if known is not value and not self._bound(pattern.name, value, bindings):
                    return None
            elif type(pattern) is OpPattern:
                call = self._produced(pattern, value, bindings)
                options = () if call is None else self._operands(pattern, call, bindings, goals)
                if len(options) != 1:
                    return self._choose(options, bindings)
                goals = options[0]
            elif isinstance(pattern, AnyOf):
                return self._choose([(a, value, goals) for a in pattern.alternatives], bindings)
            elif isinstance(pattern, Opt) and value is not None:
                goals = (pattern.inner, value, goals)
            elif not self._leaf(pattern, value, bindings):
                return None
        return self._next_root(bindings) if len(bindings.roots) < len(self.roots) else bindings

    def _next_root(self, bindings: Bindings) -> Bindings | None:
        """Further roots are looked for among the users of what is already bound."""
        root = self.roots[len(bindings.roots)]
        for operand in root.operands:
            if isinstance(operand, Var) and bindings.values.get(operand.name) is not None:
                for node in self.graph.users(bindings.values[operand.name]):
                    if node in bindings.calls or self.graph.key(node) != root.op:
                        continue
                    found = self.match_root(node, bindings.copy())
                    if found is not None:
                        return found
                break
        self._fail(bindings, None, "no second {} reads the same values", root.op)
        return None

    # ---- one goal ------------------------------------------------------------------------------------------

    def _produced(self, pattern: OpPattern, value: Value | None, bindings: Bindings) -> Call | None:
        """The call that computes `value`, bound if it is what `pattern` says."""
        if value is None:
            self._fail(bindings, None, "the operand that should be {} is absent", pattern.op)
            return None
        graph, op = self.graph, pattern.op
        node = graph.producer(value)
        if node is None or graph.key(node) != op and graph.raw_name(node) != op:
            found = "a constant, an input or an outer value" if node is None else graph.key(node)
            self._fail(bindings, node, "expected {} but found {}", op, found)
            return None
        call = self._call(pattern, node, bindings)
        if call is None or (pattern.output < len(call.outputs) and call.outputs[pattern.output] is value):
            return call
        self._fail(bindings, node, "another output of {} is used here", op)
        return None

    def _call(self, pattern: OpPattern, node: Node, bindings: Bindings) -> Call | None:
        """`node` read, and bound if it is what `pattern` says but for its operands."""
        call = self.graph.call(node) if pattern.spec is not None else self.graph.raw_call(node)
        if isinstance(call, Unreadable):
            self._fail(bindings, node, "{} cannot be read: {}", pattern.op, call.reason)
            return None
        if call.op != pattern.op:
            self._fail(bindings, node, "expected {} but found {}", pattern.op, call.op)
            return None
        if (pattern.checks or call.fields) and not self._fields(pattern, call, bindings):
            return None
        bindings.calls[node] = call
        if pattern.name is not None:
            bindings.named[pattern.name] = call
        return call

    def _fields(self, pattern: OpPattern, call: Call, bindings: Bindings) -> bool:
        fields = call.fields
        for name, expected in pattern.checks:
            given = fields.get(name)
            if type(given) is not type(expected) or given != expected:
                self._fail(bindings, call.node, "{}.{} is {!r}, the pattern says {!r}", call.op, name, given, expected)
                return False
        for name, given in fields.items():
            if name in pattern.fields:
                continue
            if pattern.spec is None or not pattern.spec.is_default(name, given):
                default = REQUIRED if pattern.spec is None else pattern.spec.fields[name]
                self._fail(
                    bindings, call.node, "{}.{} is {!r}, not its default {!r}, and the pattern does not mention it",
                    call.op, name, given, default,
                )  # fmt: skip
                return False
        return True

    def _operands(self, pattern: OpPattern, call: Call, bindings: Bindings, rest: Goals) -> tuple[Goals, ...]:
        """What is to be matched after `call` has been: its operands, in one order or in either, then `rest`."""
        wanted, given, arity = pattern.operands, call.operands, pattern.arity
        if arity == 1:
            if type(wanted[0]) is Many:
                return (rest,) if self._bound(wanted[0].name, given, bindings) else ()
            if len(given) == 1:
                return ((wanted[0], given[0], rest),)
        if arity != len(given):
            if any(o is not None for o in given[arity:]):
                self._fail(bindings, call.node, "{} has {} operands, the pattern {}", call.op, len(given), arity)
                return ()
            given += (None,) * (arity - len(given))
        if pattern.commutative:
            straight = (wanted[0], given[0], (wanted[1], given[1], rest))
            return straight, (wanted[0], given[1], (wanted[1], given[0], rest))
        goals = rest
        for i in range(arity - 1, -1, -1):
            goals = (wanted[i], given[i], goals)
        return (goals,)

    def _leaf(self, pattern: Pattern, value: Value | None, bindings: Bindings) -> bool:
        if isinstance(pattern, Opt):
            return self._absent(pattern, bindings)
        if value is None:
            self._fail(bindings, None, "a required operand is absent")
            return False
        assert isinstance(pattern, Const)
        return self._constant(pattern, value, bindings)

    def _bound(self, name: str, value: Any, bindings: Bindings) -> bool:
        """Whether `name` stands for `value`, a tuple of values or None, from now on or since before."""
        known = bindings.values.setdefault(name, value)
        if known is value or _same(known, value):
            return True
        self._fail(bindings, None, "{} stands for two different values", name)
        return False

    def _absent(self, pattern: Opt, bindings: Bindings) -> bool:
        names = [part.name for part in walk(pattern.inner) if isinstance(part, Var | Const | Many)]
        return all(self._bound(name, None, bindings) for name in names if name is not None)

    def _constant(self, pattern: Const, value: Value, bindings: Bindings) -> bool:
        data = self.graph.constant(value)
        if data is None:
            name = pattern.name or Name(self.graph.name(value))
            self._fail(bindings, self.graph.producer(value), "{} is not a constant", name)
            return False
        if pattern.value is not None and not is_uniform(data, pattern.value):
            self._fail(bindings, None, "the constant {} is not {}", Name(self.graph.name(value)), pattern.value)
            return False
        if pattern.name is not None:
            if not self._bound(pattern.name, value, bindings):
                return False
            bindings.constants[pattern.name] = data
        return True


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Literal) and isinstance(b, Literal):
        return a.dtype == b.dtype and repr(a.value) == repr(b.value)  # which tells 1 from 1.0 and -0.0 from 0.0
    return a is b


def is_uniform(data: TensorRef, value: float) -> bool:
    """Whether every element of `data` equals `value`; False for constants too large to look at."""
    if data.size == 0 or data.size > UNIFORM_LIMIT:
        return False
    return bool(np.all(data.numpy() == value))

"""Rules: a pattern, a check that says why not, and a rewrite.

    @rule(contract=Rounding())
    class AddOfMatmul:
        "matmul(x, w) + b is linear(x, w, b)."

        def pattern(self, op, x, w, b):
            return op.add(op.matmul(x, const(w)), const(b))

        def check(self, m):
            if m.w.ndim != 2:
                m.fail("the weight is not a matrix")

        def rewrite(self, m, build):
            return build.linear(m.x, m.w, m.b, trans_w=False)

A rule that is right but does not always pay says in `pays` where it does; proofs, made at small sizes, leave that out.
Inside of them and of `rewrite`, `m.x` is what the variable `x` is bound to: a `TensorRef` if the pattern says
`const(x)`, a value handle otherwise, None if an optional operand is absent; `m.<name>` of a `.named(...)` op is its
`Call`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from graphopt.errors import RuleError
from graphopt.ir.graph import Call, Graph, Node, TensorType, Value
from graphopt.rewrite.contract import Contract, require_contract
from graphopt.rewrite.matcher import Bindings, Matcher, Name, NoMatch
from graphopt.rewrite.pattern import OpPattern, build_pattern, depth, walk
from graphopt.rewrite.reading import Reading

if TYPE_CHECKING:
    from graphopt.rewrite.builder import Builder


class Refused(Exception):
    """Raised by `Match.fail`; becomes the reason of a NoMatch."""

    def __init__(self, reason: str, values: tuple[Any, ...], node: Node | None) -> None:
        super().__init__(reason)
        self.no_match = NoMatch(reason, values, node, score=1000)


class Match:
    """A pattern found in a graph."""

    __slots__ = ("_graph", "bindings", "calls", "outputs", "__dict__")

    def __init__(self, graph: Graph, bindings: Bindings) -> None:
        self._graph = graph
        self.bindings = bindings
        self.calls: Mapping[Node, Call] = bindings.calls
        """Every matched call by its node."""
        self.outputs: list[Value] = bindings.roots
        """The values that the rewrite replaces, one per root of the pattern."""
        names = bindings.values
        if bindings.constants or bindings.named:
            names = {**names, **bindings.constants, **bindings.named}
        self.__dict__ = names

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the pattern binds no {name!r}")

    @property
    def graph(self) -> Graph:
        """The graph around the match, which can be asked but not edited."""
        return cast(Graph, Reading(self._graph))

    @property
    def out(self) -> Value:
        """The value that the rewrite replaces, for a pattern with one root."""
        return self.bindings.roots[0]

    def type(self, value: Value) -> TensorType:
        """Type of `value`; fails the match when it is unknown."""
        known = self._graph.type(value)
        if known is None:
            self.fail("the type of {} is unknown", Name(self._graph.name(value)))
        return known

    def rank(self, value: Value) -> int:
        """Number of dimensions of `value`; fails the match when it is unknown."""
        rank = self.type(value).rank
        if rank is None:
            self.fail("the rank of {} is unknown", Name(self._graph.name(value)))
        return rank

    def require_same_type(self, a: Value, b: Value) -> None:
        """Fail unless `a` and `b` certainly have one dtype and one shape (symbolic sizes by name)."""
        left, right = self.type(a), self.type(b)
        if left != right or left.shape is None or None in left.shape:
            self.fail("{} is {} but {} is {}", Name(self._graph.name(a)), left, Name(self._graph.name(b)), right)

    def fail(self, reason: str, *values: Any, node: Node | None = None) -> NoReturn:
        """Refuse the match. `reason` is a str.format template filled with `values` only if somebody reads it."""
        raise Refused(reason, values, node)


class Rule:
    """What `@rule` makes of a class: its pattern compiled, its contract and name attached."""

    def __init__(self, definition: Any, contract: Contract, name: str, keep_shared: bool) -> None:
        self.definition = definition
        self.contract = require_contract(contract, f"rule {name}")
        self.name = _rule_name(name)
        self.keep_shared = keep_shared
        self.doc = inspect.cleandoc(definition.__doc__ or "")
        if not callable(getattr(definition, "pattern", None)):
            raise RuleError(f"rule {name}: pattern is not a method; expected pattern(self, op, x, ...)")
        roots = build_pattern(definition.pattern)
        self.matcher = Matcher(roots)
        self.depth = max(depth(r) for r in roots)
        self.roots = roots
        self.key = self.matcher.key
        """The op at the first root: what the driver's index looks at."""
        parts = [part for root in roots for part in walk(root)]
        self.is_raw = any(isinstance(p, OpPattern) and p.spec is None for p in parts)
        """Whether it looks for ops that are none of the vocabulary, and may have effects."""
        if taken := {str(getattr(p, "name", "")) for p in parts} & set(dir(Match)):
            raise RuleError(f"rule {name}: m.{min(taken)} is not what the pattern binds; choose another name")
        for method in ("rewrite", "check", "pays"):
            if not callable(getattr(definition, method, None if method == "rewrite" else callable)):
                raise RuleError(f"rule {name}: {method} is not a method")
        self._check: Callable[[Match], Any] | None = getattr(definition, "check", None)
        self._pays: Callable[[Match], Any] | None = getattr(definition, "pays", None)

    def match(self, graph: Graph, node: Node, *, costly: bool = False) -> Match | NoMatch:
        """Pattern, `check` and, unless it may be `costly`, `pays`. Pure. An exception inside is a RuleError that names
        the rule."""
        bindings = self.matcher.match(graph, node)
        if isinstance(bindings, NoMatch):
            return bindings
        found = Match(graph, bindings)
        refusal = None
        if self._check is not None:
            refusal = self._judged("check", self._check, found)
        if refusal is None and self._pays is not None and not costly:
            refusal = self._judged("pays", self._pays, found)
        return found if refusal is None else refusal

    def _judged(self, name: str, judge: Callable[[Match], Any], match: Match) -> NoMatch | None:
        """What `judge` has against `match`."""
        try:
            verdict = judge(match)
        except Refused as refused:
            return refused.no_match
        except Exception as error:
            raise RuleError(f"rule {self.name}: {name} raised {type(error).__name__}: {error}") from error
        if verdict is False:
            return NoMatch(f"{name} returned False", score=1000)
        if verdict is not None and verdict is not True:
            raise RuleError(f"rule {self.name}: {name} returned {verdict!r}; a match is refused by m.fail(reason, ...)")
        return None

    def rewrite(self, match: Match, build: Builder) -> Any:
        return self.definition.rewrite(match, build)

    def __repr__(self) -> str:
        return f"Rule({self.name})"


def _rule_name(name: Any) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", name):
        raise RuleError(f"a rule's name is {name!r}: expected letters, digits, '_', '-' and '.', as in 'merge-scales'")
    return name


T = TypeVar("T")


def rule(*, contract: Contract, name: str | None = None, keep_shared: bool = False) -> Callable[[type[T]], Rule]:
    """Make a Rule of a class with `pattern`, `rewrite` and, if it needs them, `check` and `pays`.

    Args:
        contract: what the rewrite promises; see `graphopt.rewrite.contract`.
        name: command-line name; by default the class name in kebab-case.
        keep_shared: allow inner values of the pattern to have users outside of it. They are then kept beside the
            new nodes; by default such a match is refused.
    """

    def decorate(definition: type[T]) -> Rule:
        text = name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", definition.__name__).lower()
        return Rule(definition(), contract, text, keep_shared)

    return decorate

"""The matcher against a search that goes through everything: random patterns on random graphs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from graphs import VECTOR

from graphopt.ir.graph import Node
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import ArrayRef
from graphopt.rewrite.matcher import Matcher, NoMatch
from graphopt.rewrite.pattern import (
    AnyOf,
    Const,
    Many,
    OpPattern,
    Opt,
    Pattern,
    PatternOps,
    Var,
    any_of,
    const,
    many,
    opt,
    walk,
)

UNARY, BINARY = ("neg", "relu"), ("add", "sub", "mul")
OP = PatternOps()
Env = dict[str, Any]


def random_graph(r: random.Random) -> ScratchGraph:
    graph = ScratchGraph()
    values = [graph.add_input(VECTOR) for _ in range(2)]
    constants = [graph.add_constant(ArrayRef(np.full(4, v)), "c")[0] for v in (0.0, 1.0, 1.0)]
    for _ in range(r.randint(2, 6)):
        recent = values[-3:]
        op = r.choice((*UNARY, *BINARY, *BINARY, "clamp", "concat"))
        if op in UNARY:
            operands = [r.choice(recent)]
        elif op == "clamp":
            operands = [r.choice(recent), *(r.choice([*constants, None]) for _ in range(2))]
        else:
            operands = [r.choice([*recent, *recent, r.choice(constants)]) for _ in range(2)]
        values.append(graph.append(op, *operands, types=[VECTOR], **({"axis": 0} if op == "concat" else {})))
    return graph


def random_pattern(r: random.Random, depth: int) -> Pattern:
    kind = r.random()
    if depth == 0 or kind < 0.25:
        return r.choice([Var("x"), Var("y"), Var("c"), const(Var("c")), const(Var("d")), const(1.0)])
    if kind < 0.5:
        return any_of(*(random_pattern(r, depth - 1) for _ in range(r.randint(2, 3))))
    return random_root(r, depth)


def random_root(r: random.Random, depth: int) -> OpPattern:
    op = r.choice((*UNARY, *BINARY, *BINARY, "clamp", "concat"))
    if op == "concat":
        return OP.concat(many(Var(r.choice("xs"))), axis=0)
    if op == "clamp":
        bounds = [opt(const(Var("c"))), opt(const(Var("d"))), opt(Var("y")), opt(any_of(const(1.0), const(Var("c"))))]
        return OP.clamp(random_pattern(r, depth - 1), r.choice(bounds), r.choice(bounds))
    operands = (random_pattern(r, depth - 1) for _ in range(1 if op in UNARY else 2))
    made: OpPattern = getattr(OP, op)(*operands)
    return made


def bound(env: Env, name: str | None, value: Any) -> Iterator[Env]:
    """`env` with one more binding, unless the name stands for another value already."""
    if name is None or env.get(name, value) == value:
        yield env if name is None else {**env, name: value}


def found(graph: ScratchGraph, pattern: Pattern, value: Any, env: Env) -> Iterator[Env]:
    """Everything that `pattern` may bind at `value`, in the order in which alternatives are given."""
    match pattern:
        case AnyOf():
            for alternative in pattern.alternatives:
                yield from found(graph, alternative, value, env)
        case Opt() if value is None:
            for part in walk(pattern.inner):
                env = next(bound(env, getattr(part, "name", None), None), {"failed": True})
            if "failed" not in env:
                yield env
        case Opt():
            yield from found(graph, pattern.inner, value, env)
        case Var() if value is not None:
            yield from bound(env, pattern.name, value)
        case Const() if value is not None and (data := graph.constant(value)) is not None:
            if pattern.value is None or (data.numpy() == pattern.value).all():
                yield from bound(env, pattern.name, value)
        case OpPattern() if value is not None and (node := graph.producer(value)) is not None:
            yield from found_at(graph, pattern, node, env)


def found_at(graph: ScratchGraph, pattern: OpPattern, node: Node, env: Env) -> Iterator[Env]:
    call = graph.call(node)
    if call.op != pattern.op:
        return
    if isinstance(pattern.operands[0], Many):
        yield from bound(env, pattern.operands[0].name, call.operands)
        return
    orders = [call.operands, call.operands[::-1]] if pattern.op in ("add", "mul") else [call.operands]
    for operands in orders:
        yield from _found_all(graph, list(zip(pattern.operands, operands, strict=True)), env)


def _found_all(graph: ScratchGraph, goals: list[tuple[Pattern, Any]], env: Env) -> Iterator[Env]:
    if not goals:
        yield env
        return
    for each in found(graph, *goals[0], env):
        yield from _found_all(graph, goals[1:], each)


def test_the_first_match_of_a_full_search_is_found_and_no_other() -> None:
    matched = 0
    for seed in range(1500):
        r = random.Random(seed)
        graph, root = random_graph(r), random_root(r, 3)
        matcher = Matcher((root,))
        for node in graph.nodes():
            expected = next(found_at(graph, root, node, {}), None)
            if graph.key(node) != root.op:
                continue
            assert expected is None or matcher.may_match(frozenset(graph.operand_keys(node)))
            got = matcher.match(graph, node)
            assert (None if isinstance(got, NoMatch) else got.values) == expected, seed
            matched += expected is not None
    assert matched > 100

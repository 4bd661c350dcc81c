"""Proved applications of passes to real models, cut out so that mutants can be made of them.

Every application of the default pipeline and of `fuse-attention` and `merge-linear` is proved as `prove=True` proves
it. What is proved is copied with its weights as expressions, once for each signature: fifty equal blocks are one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphopt.ir.graph import CannotEmit
from graphopt.ir.load import load_model
from graphopt.ir.transcribe import transcribe
from graphopt.ir.weights import Array
from graphopt.pipeline.context import Context
from graphopt.pipeline.pipeline import Pipeline, make_passes
from graphopt.rewrite.change import Change
from graphopt.rewrite.contract import Evidence, Proof
from graphopt.rewrite.ledger import Ledger
from graphopt.tools.fetch import DEFAULT_FOLDER, fetch
from graphopt.verify.fragment import Fragment, Side
from graphopt.verify.proved import Proved, signature

PASSES = "fuse-attention,merge-linear,fuse-conv-bn,clean-up"
MILLISECONDS = 50.0
"""What a proof may have taken for its mutants to be made: each of them is proved as well."""


@dataclass(frozen=True)
class Recorded:
    """One proved application."""

    name: str
    fragment: Fragment
    feeds: list[Array]


def of_models(ids: tuple[str, ...], dest: Path = DEFAULT_FOLDER) -> Iterator[Recorded]:
    """What is proved of ONNX models of the manifest, named after model and rule."""
    seen: set[str] = set()
    for name, path in fetch(ids, dest).items():
        yield from recorded(load_model(path), name, seen)


def of_torch() -> Iterator[Recorded]:
    """What is proved of transformers' models, with few features and random weights."""
    import torch
    import transformers as t

    size: dict[str, Any] = {
        "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 24,
    }  # fmt: skip
    image = torch.rand(1, 3, 16, 16)
    text = torch.arange(5)[None]
    models: dict[str, tuple[Any, Any]] = {
        "ResNet": (lambda: t.ResNetModel(t.ResNetConfig(embedding_size=6, hidden_sizes=[8, 12], depths=[1, 1])), image),
        "ViT": (lambda: t.ViTModel(t.ViTConfig(image_size=16, patch_size=8, **size)), image),
        "Bert": (lambda: t.BertModel(t.BertConfig(vocab_size=20, max_position_embeddings=8, **size)), text),
    }
    seen: set[str] = set()
    for name, (make, example) in models.items():
        torch.manual_seed(0)
        yield from recorded(load_model(make().eval(), example_inputs=(example,)), name, seen)


def recorded(model: Any, name: str, seen: set[str]) -> Iterator[Recorded]:
    """What is proved of the passes' applications to `model`, which is changed.

    Args:
        seen: signatures that are left out; those found are added.
    """
    recorder = _Recorder(name, seen)
    Pipeline(make_passes(PASSES)).run(Context(model, recorder, Ledger(None, frozenset())), name, "match")
    yield from recorder.found


class _Trusting:
    """Lets every change through: what is proved of it is the question here."""

    def verify(self, change: Change) -> Evidence:
        return Evidence("executed")


class _Recorder:
    def __init__(self, name: str, seen: set[str]) -> None:
        self.found: list[Recorded] = []
        self._proved = Proved(_Trusting(), observe=self._record)
        self._name, self._seen = name, seen
        self._rule = ""

    def verify(self, change: Change) -> Evidence:
        self._rule = change.id.split("#")[0]
        return self._proved.verify(change)

    def _record(self, fragment: Fragment, feeds: Sequence[Array], proof: Proof) -> None:
        key = signature(fragment, feeds)
        if proof.holds and proof.milliseconds < MILLISECONDS and key not in self._seen:
            self._seen.add(key)
            if (copy := copied(fragment)) is not None:
                self.found.append(Recorded(f"{self._name}, {self._rule}", copy, list(feeds)))


def copied(fragment: Fragment) -> Fragment | None:
    """`fragment` in a scratch graph, so that it stays when its model goes on; None if the vocabulary cannot say it.

    Where nothing is left behind the change, its sides are swapped: there would be nothing to mutate.
    """
    sides = fragment.before, fragment.after
    try:
        graph, other = (
            transcribe(fragment.graph, s.nodes, fragment.inputs, s.outputs, declared=s.declared)[0] for s in sides
        )
    except CannotEmit:
        return None
    for mine, theirs in zip(graph.inputs(), other.inputs(), strict=True):
        other.replace(theirs, mine)
    before, after = (Side(tuple(g.nodes()), tuple(g.outputs())) for g in (graph, other))
    made = Fragment(graph, tuple(graph.inputs()), before, after)
    return made if after.nodes else replace(made, before=after, after=before)

"""How many tokens each expert is given on calibration data, and with what weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.errors import ModelError
from graphopt.ir.load import load_model
from graphopt.ir.model import Model
from graphopt.ir.weights import Array
from graphopt.passes.low_rank.activations import activations
from graphopt.passes.prune_experts.mixtures import Mixture, mixtures
from graphopt.verify.calibration import Calibration, inputs_of


@dataclass(frozen=True)
class Load:
    """What the experts of one mixture are given, all calibration data together."""

    name: str
    """Name of the router's weight, or of the selection where there is none."""
    k: int
    """Experts of each token."""
    tokens: npt.NDArray[np.int64]
    """[E], tokens that are routed to each expert."""
    gate: npt.NDArray[np.float64] | None
    """[E], sums of the weights of these tokens; None where the graph does not show them."""

    @property
    def experts(self) -> int:
        return len(self.tokens)

    @property
    def total(self) -> int:
        """Tokens, each counted once."""
        return int(self.tokens.sum()) // self.k

    @property
    def share(self) -> npt.NDArray[np.float64]:
        """[E], shares of the k * total assignments; their sum is 1."""
        return self.tokens / max(1, int(self.tokens.sum()))

    @property
    def mean_gate(self) -> npt.NDArray[np.float64] | None:
        """[E], the mean weight of each expert over its own tokens; 0 of one that has none."""
        return None if self.gate is None else self.gate / np.maximum(1, self.tokens)

    @property
    def entropy(self) -> float:
        """Of the shares, divided by log(E): 1 if all experts have the same number of tokens, 0 if one has all."""
        share = self.share[self.share > 0]
        return float(-(share * np.log(share)).sum() / np.log(self.experts)) if self.experts > 1 else 1.0

    @property
    def variation(self) -> float:
        """Standard deviation of the numbers of tokens divided by their mean; its square is the loss of Shazeer et al.
        2017, section 4."""
        mean = float(self.tokens.mean())
        return float(self.tokens.std()) / mean if mean else 0.0

    def merged(self, table: Array) -> Load:
        """The load of the experts that stay, `table[e]` being the one that expert e has become."""
        tokens = np.bincount(table, self.tokens).astype(np.int64)
        return Load(self.name, self.k, tokens, None if self.gate is None else np.bincount(table, self.gate))

    @property
    def dead(self) -> tuple[int, ...]:
        """Experts without a token."""
        return tuple(int(i) for i in np.flatnonzero(self.tokens == 0))

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        gate = self.mean_gate
        return {
            "name": self.name, "experts": self.experts, "k": self.k, "total": self.total,
            "tokens": self.tokens.tolist(), "share": self.share.tolist(),
            "mean_gate": None if gate is None else gate.tolist(),
            "entropy": self.entropy, "variation": self.variation, "dead": list(self.dead),
        }  # fmt: skip


def balance(model: Any, calibration: Any, *, example_inputs: Any = None, dynamic_shapes: Any = None) -> list[Load]:
    """The load of every mixture of experts in the main graph of `model`, over calibration data.

    Args:
        model: a Model, or anything that `graphopt.optimize` takes; not changed. `example_inputs` and `dynamic_shapes`
            as there.
        calibration: batches of real inputs, or a `graphopt.Calibration`; all of it is used, nothing is held out.

    Returns:
        One for each mixture, in the order of the graph; of experts that `merge-experts` has made one as one.

    Raises:
        ModelError: the model cannot be taken or has no mixture of experts, or the data does not fit it.
    """
    if not isinstance(model, Model):
        model = load_model(model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
    found = mixtures(model.main)
    if not found:
        raise ModelError(
            "no mixture of experts in the main graph: no k best of the scores of E experts by whose numbers weights "
            "are picked or rows are sorted"
        )
    data = Calibration.of(calibration)
    if data is None:
        raise ModelError("a load is measured on calibration data: give batches of real inputs")
    feeds = [list(batch.values()) for batch in data.batches(inputs_of(model))]
    known = zip(loads(model, found, feeds), found, strict=True)
    return [load if mixture.table is None else load.merged(mixture.table) for load, mixture in known]


def loads(model: Model, found: Sequence[Mixture], feeds: Sequence[list[Array]]) -> list[Load]:
    """The loads of the mixtures `found` in the main graph of `model`, over `feeds`, by the router's numbers."""
    values = list(dict.fromkeys(v for m in found for v in (m.ids, m.gates) if v is not None))
    tokens = [np.zeros(m.experts, np.int64) for m in found]
    gates = [np.zeros(m.experts) for m in found]
    for arrays in activations(model, values, feeds):
        by_value = dict(zip(values, arrays, strict=True))
        for mixture, count, gate in zip(found, tokens, gates, strict=True):
            ids = by_value[mixture.ids].reshape(-1).astype(np.int64)
            count += np.bincount(ids, minlength=mixture.experts)
            if mixture.gates is not None:
                weights = by_value[mixture.gates].reshape(-1).astype(np.float64)
                gate += np.bincount(ids, weights, minlength=mixture.experts)
    return [
        Load(m.name, m.k, count, gate if m.gates is not None else None)
        for m, count, gate in zip(found, tokens, gates, strict=True)
    ]

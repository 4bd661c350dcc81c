"""What torch's exporter makes of a module is run beside the module before it is handed over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import graphopt
from graphopt.backends import ort_export
from graphopt.errors import PipelineError, UnsupportedError

X = torch.arange(12.0).reshape(3, 4)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).tanh()


@pytest.fixture
def wrong_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.onnx.export, but every Tanh is a Sigmoid."""
    export = torch.onnx.export

    def wrong(*args: Any, **kwargs: Any) -> Any:
        exported = export(*args, **kwargs)
        for node in exported.model.graph:
            node.op_type = "Sigmoid" if node.op_type == "Tanh" else node.op_type
        return exported

    monkeypatch.setattr(ort_export.torch.onnx, "export", wrong)


def test_another_function_is_refused(wrong_exporter: None) -> None:
    module = Layer().eval()
    with pytest.raises(UnsupportedError, match=r"does not compute the same: largest error .* lower it to the backend"):
        graphopt.lower(module, example_inputs=X)
    with pytest.raises(UnsupportedError, match="does not compute the same"):
        graphopt.optimize(module, "clean-up", example_inputs=X).lower("onnxruntime")


def test_it_is_handed_over_on_request(wrong_exporter: None) -> None:
    module = Layer().eval()
    run = graphopt.lower(module, example_inputs=X, compare=False)
    torch.testing.assert_close(run(X), module.linear(X).sigmoid())
    with pytest.raises(PipelineError, match="compare is 'no', expected True or False"):
        graphopt.lower(module, example_inputs=X, compare="no")


def test_zeros_that_were_traced_with_hide_nothing(wrong_exporter: None) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.tanh()

    with pytest.raises(UnsupportedError, match="does not compute the same"):
        graphopt.lower(Odd().eval(), example_inputs=torch.zeros(3, 4))


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


class Indexed(nn.Module):
    def forward(self, x: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x[rows], x.argmax(1)


@pytest.mark.parametrize(
    ("module", "inputs", "shapes"),
    [
        (Layer(), (X,), ({0: torch.export.Dim("n", min=2, max=64)},)),
        (Noisy(), (X,), None),
        (Indexed(), (X, torch.tensor([2, 0])), None),
        (Layer().double(), (X.double(),), None),
        (Layer().half(), (X.half(),), None),
    ],
    ids=["dynamic", "random", "indices", "float64", "float16"],
)
def test_what_is_exported_well_is_handed_over_without_a_word(module: nn.Module, inputs: Any, shapes: Any) -> None:
    run = graphopt.lower(module.eval(), example_inputs=inputs, dynamic_shapes=shapes)
    assert not [note for note in run.notes if "not compared" in note]


def test_what_numpy_cannot_hand_to_onnxruntime_is_said_to_be_not_compared() -> None:
    class Same(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

    run = graphopt.lower(Same().eval(), example_inputs=X.bfloat16())
    assert [note for note in run.notes if note.startswith("not compared with torch: ")]
    torch.testing.assert_close(run(X.bfloat16()), X.bfloat16())

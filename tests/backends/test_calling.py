"""Sizes that a torch model was not exported for are refused: the program has another branch than they need."""

import pytest
import torch
from torch.export import Dim

import graphopt
from graphopt.backends.guards import Guards
from graphopt.backends.inputs import InputError

X = torch.linspace(-1, 1, 15).reshape(5, 3)


class Branches(torch.nn.Module):
    def forward(self, x):
        return x * 2 if x.shape[0] % 3 and x.shape[0] <= 7 else x * 3


@pytest.fixture(scope="module", params=[True, False], ids=["bound", "copied"])
def run(request):
    return graphopt.lower(
        Branches(), example_inputs=(X,), dynamic_shapes=({0: Dim.AUTO},), io_binding=request.param, threads=1
    )


def test_sizes_for_which_a_comparison_in_the_model_comes_out_otherwise_are_refused(run):
    with pytest.raises(InputError, match=r"exported for inputs L of which .*% 3.* holds"):
        run(torch.ones(6, 3))
    assert not any("not checked" in note for note in run.notes)


def test_sizes_outside_of_the_range_are_refused(run):
    with pytest.raises(InputError, match=r"a size of 8 is given for x:0, .* exported for 0 to 7"):
        run(torch.ones(8, 3))


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 7])
def test_sizes_of_the_branch_are_computed(run, rows):
    torch.testing.assert_close(run(torch.ones(rows, 3)), Branches()(torch.ones(rows, 3)))


def test_two_inputs_that_share_a_size_have_to_agree():
    class Adds(torch.nn.Module):
        def forward(self, x, y):
            return x + y

    both = {0: Dim("rows")}
    run = graphopt.lower(Adds(), example_inputs=(X, X), dynamic_shapes=(both, both), threads=1)
    torch.testing.assert_close(run(X[:2], X[:2]), 2 * X[:2])
    with pytest.raises(InputError, match=r"is 1 elsewhere, 5 here|is 5 elsewhere, 1 here"):
        run(X[:1], X)


def test_a_program_from_a_file_keeps_its_conditions(tmp_path):
    program = torch.export.export(Branches(), (X,), dynamic_shapes=({0: Dim.AUTO},))
    torch.export.save(program, tmp_path / "model.pt2")
    optimized = graphopt.optimize(torch.export.load(tmp_path / "model.pt2"), passes=["clean-up"])
    with pytest.raises(AssertionError, match="Guard failed"):
        optimized.model.module()(torch.ones(6, 3))
    with pytest.raises(InputError, match="% 3"):
        optimized.lower("onnxruntime", threads=1)(torch.ones(6, 3))


@pytest.mark.parametrize("text", ["L['x'].__class__ != 3", "L['y'].size()[0] == 2", "[L['x']]", "open('f') == 3"])
def test_conditions_that_are_not_of_sizes_are_noted_and_not_evaluated(text):
    class Program:
        _guards_code = ("L['x'].size()[0] == 2", text)

    guards = Guards(Program(), ["x"])
    assert guards.unread == [text]
    guards.require({"x": torch.ones(2)})
    with pytest.raises(InputError, match="it does not"):
        guards.require({"x": torch.ones(3)})


def test_conditions_hold_for_the_arguments_that_are_given_by_position():
    """`b` was exported in front of `a`, which the original's forward takes first."""

    class Clears(torch.nn.Module):
        def forward(self, x, a, b):
            y = a.clone()
            y.flatten().zero_()
            return x + y + b

    x, a, b = (torch.arange(9.0).reshape(3, 3) + i for i in range(3))
    lowered = graphopt.lower(Clears().eval(), example_inputs=((x,), {"b": b, "a": a}))
    torch.testing.assert_close(lowered(x, a, b.T), Clears()(x, a, b.T))
    with pytest.raises(InputError, match=r"L\['a'\].is_contiguous\(\) holds"):
        lowered(x, a.T, b)


def test_an_input_that_is_read_by_its_strides_has_to_be_contiguous():
    class Picks(torch.nn.Module):
        """The first operand as it lies in memory; the second as a linear layer lays its result."""

        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(6, 6)

        def forward(self, x, y):
            return x.relu().as_strided((2, 3), (6, 1)) + self.linear(y).as_strided((2, 3), (1, 2))

    module, x = Picks().eval(), torch.arange(24.0).reshape(4, 6)
    transposed = x.t().contiguous().t()
    lowered = graphopt.lower(module, example_inputs=(x, x))
    torch.testing.assert_close(lowered(x, transposed), module(x, transposed))
    with pytest.raises(InputError, match=r"reads 'x' by its strides .* got strides \(1, 4\); give "):
        lowered(transposed, x)
    kept = graphopt.optimize(module, "clean-up", example_inputs=(x, x)).model
    torch.testing.assert_close(kept(transposed, x), module(transposed, x))
    with pytest.raises(InputError, match="reads 'x' by its strides"):
        graphopt.lower(module, example_inputs=(transposed, x))(transposed, x)

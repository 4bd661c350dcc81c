import pytest
import torch
from torch._export import utils
from torch._subclasses.fake_impls import op_implementations_dict as fake_rules
from torch.export import exported_program
from torch.nn import functional as F

from graphopt.ir.fx import decompose

aten = torch.ops.aten
IMAGE = torch.ones(1, 4, 6, 6)
TABLES = {
    "keep all": dict,
    "core": lambda: dict(torch.export.default_decompositions().items()),
    "own": lambda: {aten.linear.default: lambda x, w, b=None: x @ w.t() + (0 if b is None else b)},
}


class Mixed(torch.nn.Module):
    """Composite ops that are kept (linear, pixel_shuffle, sdpa) and that are not (chunk, dropout, flatten, a write)."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(4)
        self.linear = torch.nn.Linear(36, 6)
        self.drop = torch.nn.Dropout()

    def forward(self, x):
        x = self.drop(F.leaky_relu_(self.norm(x) + 1))
        a, b = F.scaled_dot_product_attention(x, x, x).chunk(2, dim=1)
        return self.linear(x.flatten(2)), F.pixel_shuffle(x, 2), torch.einsum("bcij,bdij->bcd", a, b)


@pytest.fixture(scope="module")
def program():
    return torch.export.export(Mixed().eval(), (IMAGE,), strict=False)


def text(program):
    return [(str(n.target), str(n.args), str(n.kwargs), str(n.meta.get("val"))) for n in program.graph.nodes]


def registered():
    ops = utils._collect_all_valid_cia_ops()
    return {op: dict(op.py_kernels) for op in ops}, {op: fake_rules[op] for op in ops if op in fake_rules}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_programs_are_those_of_torch_the_first_time_and_every_time(program, table, monkeypatch):
    monkeypatch.setattr(decompose, "_marks", {})
    wanted = text(program.run_decompositions(table()))
    before = registered()
    for _ in range(3):
        made = decompose.run_decompositions(program, table())
        assert text(made) == wanted
        assert registered() == before
    assert text(program.run_decompositions(table())) == wanted
    assert len(decompose._marks) > 50  # or this has shown nothing


def test_nothing_is_left_marked_after_an_error(program):
    decompose.run_decompositions(program, {})
    before = registered()

    def fails(*_args):
        raise ArithmeticError("planted")

    with pytest.raises(ArithmeticError, match="planted"):
        decompose.run_decompositions(program, {aten.linear.default: fails})
    assert registered() == before
    assert text(decompose.run_decompositions(program, {})) == text(program.run_decompositions({}))


def test_torch_has_its_own_functions_again_afterwards(program):
    own = exported_program._override_composite_implicit_decomp, utils._materialize_cpp_cia_ops
    with decompose.remembered_marks():
        assert exported_program._override_composite_implicit_decomp is not own[0]
    assert (exported_program._override_composite_implicit_decomp, utils._materialize_cpp_cia_ops) == own


def test_a_kernel_that_was_registered_since_is_kept(program):
    decompose.run_decompositions(program, {})
    op, key = aten.pixel_shuffle.default, torch._C.DispatchKey.QuantizedCPU

    def kernel(*_args):
        raise AssertionError

    before = dict(op.py_kernels)
    op.py_impl(key)(kernel)
    try:
        wanted = text(program.run_decompositions({}))
        assert text(decompose.run_decompositions(program, {})) == wanted
        assert op.py_kernels == before | {key: kernel}
    finally:
        del op.py_kernels[key]
        op._dispatch_cache.clear()


def test_composite_ops_that_are_defined_later_are_kept_too(program):
    decompose.run_decompositions(program, {})
    with torch.library._scoped_library("graphopt_decompose", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x + x, "CompositeImplicitAutograd")

        class Twice(torch.nn.Module):
            def forward(self, x):
                return torch.ops.graphopt_decompose.twice(x)

        twice = torch.export.export(Twice(), (IMAGE,), strict=False)
        for _ in range(2):
            made = decompose.run_decompositions(twice, {})
            assert "graphopt_decompose.twice.default" in [str(n.target) for n in made.graph.nodes]


def test_without_the_functions_of_torch_that_are_replaced_its_own_way_is_taken(program, monkeypatch):
    monkeypatch.delattr(utils, "_materialize_cpp_cia_ops")
    with decompose.remembered_marks():
        assert exported_program._override_composite_implicit_decomp.__module__ == exported_program.__name__

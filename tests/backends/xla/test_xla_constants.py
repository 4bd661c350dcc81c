"""What a program computes from nothing are torch's numbers on XLA."""

from xla_support import Function, torch  # first: it skips where JAX is missing  # isort: skip

import math

import graphopt
from graphopt.backends.constants import LARGEST, constants_of


def program_of(function, *args):
    return graphopt.load(Function(function).eval(), example_inputs=args).program()


def stored(function, *args):
    module = program_of(function, *args).graph_module
    return {node.target.overloadpacket.__name__: tuple(value.shape) for node, value in constants_of(module).items()}


def frequencies(timestep):
    return timestep * torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)


def test_frequencies_of_a_timestep_are_the_same_bits():
    run = graphopt.lower(Function(frequencies).eval(), "xla", example_inputs=(torch.tensor(1.0),))
    for timestep in (1.0, 999.0):
        assert torch.equal(run(torch.tensor(timestep)), frequencies(torch.tensor(timestep)))


def test_what_inputs_or_weights_reach_is_computed_by_xla():
    found = stored(frequencies, torch.tensor(1.0))
    assert found == {"arange": (128,), "mul": (128,), "div": (128,), "exp": (128,)}
    assert stored(lambda x: torch.nn.functional.linear(x, x), torch.randn(2, 2)) == {}


def test_large_results_and_unwritten_memory_are_not_stored():
    assert stored(lambda x: x + torch.arange(LARGEST + 1), torch.tensor(1)) == {}
    assert stored(lambda x: x + 0 * torch.empty(3), torch.tensor(1.0)) == {}

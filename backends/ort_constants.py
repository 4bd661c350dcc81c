"""What a torch model computes from nothing, such as the frequencies of a timestep embedding, as torch
computes it.

torch's exporter computes it with numpy, whose exponential is rounded otherwise in the last place. Times a timestep of
up to 999, and with the sine taken of it, that is an error of 6e-5.
"""

from __future__ import annotations

import torch
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from graphopt.backends.constants import constants_of


def store_constants(program: ExportedProgram) -> None:
    """Let small floating-point tensors that ops make of no input and no weight be constants of `program`, which is
    edited. What only says a size and a number (`zeros`, `arange`) is the same everywhere, and stays."""
    graph, found = program.graph_module.graph, constants_of(program.graph_module)
    for node, value in found.items():
        read = [user for user in node.users if user not in found]
        if node.all_input_nodes and value.is_floating_point() and read and graph.output_node() not in read:
            stored = _stored(program, node, value)
            node.replace_all_uses_with(stored, delete_user_cb=read.__contains__)
    for node in reversed(found):
        if not node.users:
            graph.erase_node(node)
    program.graph_module.recompile()


def _stored(program: ExportedProgram, like: torch.fx.Node, value: torch.Tensor) -> torch.fx.Node:
    """A new constant in front of the inputs, with the type of `like`."""
    graph, specs = program.graph_module.graph, program.graph_signature.input_specs
    placeholders = graph.find_nodes(op="placeholder")
    place = next((i for i, spec in enumerate(specs) if spec.kind is InputKind.USER_INPUT), len(specs))
    before = placeholders[place] if place < len(placeholders) else next(n for n in graph.nodes if n.op != "placeholder")
    name, taken = f"constant_{like.name}", {*program.constants, *program.state_dict}
    while name in taken:
        name += "_"
    with graph.inserting_before(before):
        stored = graph.placeholder(name)
    stored.meta["val"] = like.meta["val"]
    specs.insert(place, InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(name=stored.name), target=name))
    program.constants[name] = value
    return stored

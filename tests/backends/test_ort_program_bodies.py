"""Prologues, tables and several bodies of a program on onnxruntime."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from sampling_programs import (
    GUIDED,
    NOISE,
    SCHEDULERS,
    distance,
    lower,
    onnx_program,
    with_scheduler,
)

import graphopt
from graphopt.errors import UnsupportedError
from graphopt.ir.graph import TensorType
from graphopt.ir.load import load_model
from graphopt.passes.hoist import Hoist
from graphopt.program.body import Body, Feed, Unit
from graphopt.program.guidance import Guidance
from graphopt.program.interface import Condition, Interface
from graphopt.program.program import Program
from graphopt.program.schedule import Schedule

FORMS = ("loop", "sessions")
SAMPLE, TEXT, BIAS = TensorType("float32", (2, 3)), TensorType("float32", (2, 4)), TensorType("float32", (3,))
FIRST, SECOND = "first", "second"

# prediction = tanh(x w) + tanh(text u) cos(t) + bias, with the second term tabulated
PROLOGUE = """
unit (float[2,4] text) => (float[2,3] k) <float[4,3] u = {{{u}}}> {{ product = MatMul(text, u)
  k = Tanh(product) }}"""
TABLE = """
unit (float[2,3] k, float[2] t) => (float[2,3] row, float[2,1] unused) <int64[1] axes = {{1}}> {{
  column = Unsqueeze(t, axes) unused = Cos(column) row = Mul(k, unused) }}"""
STEP = """
unit (float[3] bias, float[2,3] x, float[2,3] row) => (float[2,3] prediction) <float[3,3] w = {{{w}}}> {{
  product = MatMul(x, w) bent = Tanh(product) sum = Add(bent, row) prediction = Add(sum, bias) }}"""
WHOLE = """
unit (float[2,3] x, float[2] t, float[2,4] text, float[3] bias) => (float[2,3] prediction)
  <float[3,3] w = {{{w}}}, float[4,3] u = {{{u}}}, int64[1] axes = {{1}}> {{
  product = MatMul(text, u) k = Tanh(product) column = Unsqueeze(t, axes) wave = Cos(column) row = Mul(k, wave)
  mixed = MatMul(x, w) bent = Tanh(mixed) sum = Add(bent, row) prediction = Add(sum, bias) }}"""


def unit(text, feeds, *, seed=0, opset=18, batch=2):
    rng = np.random.default_rng(seed)
    numbers = {name: ", ".join(f"{v:.6f}" for v in rng.standard_normal(count)) for name, count in (("u", 12), ("w", 9))}
    text = text.format(**numbers).replace("[2", f"[{batch}")
    source = f'<ir_version: 8, opset_import: ["" : {opset}]>{text}'
    return Unit(load_model(onnx.parser.parse_model(source)), tuple(feeds))


def whole(**options):
    feeds = (Feed("sample"), Feed("timestep"), Feed("condition", "text"), Feed("condition", "bias"))
    return Body(unit(WHOLE, feeds, **options))


def split(**options):
    step = Feed("condition", "bias"), Feed("sample"), Feed("table", index=0)
    return Body(
        unit(STEP, step, **options),
        unit(PROLOGUE, [Feed("condition", "text")], **options),
        unit(TABLE, [Feed("prologue", index=0), Feed("timestep")], **options),
    )


def program(bodies, calls=None, guidance=None, scheduler="DPM++ 2M", steps=6):
    schedule = Schedule.from_diffusers(SCHEDULERS[scheduler](), steps)
    doubled = guidance is not None and guidance.mode == "batch"
    conditions = (Condition("text", TEXT), Condition("bias", BIAS, branched=False))
    interface = Interface(SAMPLE, TensorType("float32", (4 if doubled else 2,)), 0.01, conditions, doubled=doubled)
    names = list(bodies)
    calls = tuple(names[0] for _ in range(len(schedule))) if calls is None else tuple(calls)
    return Program("toy", bodies, calls, schedule, interface, guidance)


rng = np.random.default_rng(1)
START = rng.standard_normal((2, 3)).astype(np.float32)
CONDITIONS = {"text": rng.standard_normal((2, 4)).astype(np.float32), "bias": rng.standard_normal(3).astype(np.float32)}
NEGATIVES = {**CONDITIONS, "negative_text": rng.standard_normal((2, 4)).astype(np.float32)}


def both_forms(made, conditions, seed=3):
    results = [lower(made, form=form)(START, seed, **conditions) for form in FORMS]
    assert np.array_equal(*results)
    return results[0]


@pytest.mark.parametrize("guidance", [None, Guidance(2.0), Guidance(2.0, "calls", 0.5)], ids=str)
def test_prologue_and_table_give_what_the_whole_body_gives(guidance):
    given = CONDITIONS if guidance is None else NEGATIVES
    batch = 4 if guidance is not None and guidance.mode == "batch" else 2
    uncut = program({FIRST: whole(batch=batch)}, guidance=guidance)
    cut = program({FIRST: split(batch=batch)}, guidance=guidance)
    expected = uncut(START, **given)
    assert distance(both_forms(uncut, given), expected) <= 1e-6
    assert distance(both_forms(cut, given), expected) <= 1e-6
    assert distance(cut(START, **given), expected) <= 1e-6


@pytest.mark.parametrize("second", [whole, split], ids=["whole", "split"])
@pytest.mark.parametrize(
    "calls", [[FIRST] * 3 + [SECOND] * 3, [FIRST, SECOND] * 3, [SECOND, FIRST, SECOND, SECOND, FIRST, FIRST]], ids=str
)
def test_every_row_calls_its_own_body(calls, second):
    made = program({FIRST: split(), SECOND: second(seed=5)}, calls, Guidance(2.0, "calls"))
    got = both_forms(made, NEGATIVES)
    assert distance(got, made(START, **NEGATIVES)) <= 1e-6
    other = program({FIRST: split(), SECOND: second(seed=5)}, calls[::-1], Guidance(2.0, "calls"))
    assert distance(got, both_forms(other, NEGATIVES)) > 1e-3


def test_three_bodies_and_one_that_no_row_calls():
    bodies = {FIRST: split(), SECOND: whole(seed=5), "third": split(seed=6), "idle": whole(seed=7, opset=17)}
    made = program(bodies, ["third", FIRST, SECOND, "third", SECOND, FIRST])
    assert distance(both_forms(made, CONDITIONS), made(START, **CONDITIONS)) <= 1e-6


def test_the_loop_holds_the_weights_of_every_body_once():
    compiled = lower(program({FIRST: whole(), SECOND: whole(seed=5)}, [FIRST, SECOND] * 3, Guidance(2.0, "calls")))
    proto = ir.to_proto(compiled.model)
    found = [list(t.dims) for t in initializers(proto.graph)]
    assert found.count([3, 3]) == 2 and found.count([4, 3]) == 2


def initializers(graph):
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from initializers(attribute.g)


@pytest.mark.parametrize("weigh", [True, False])
def test_hoisted_programs_give_what_they_gave_before(weigh):
    plain = with_scheduler(onnx_program(Guidance(3.0)), SCHEDULERS["Euler ancestral"]())
    hoisted = graphopt.optimize(plain, [Hoist(weigh=weigh)], verify="off").model
    assert [name for name, _ in hoisted.bodies["denoiser"].units()] == ["prologue", "table", "step"]
    results = [lower(hoisted, form=form)(NOISE, 5, **GUIDED) for form in FORMS]
    assert torch.equal(*results)
    assert distance(results[0], lower(plain)(NOISE, 5, **GUIDED)) <= 1e-6


def test_noise_of_rows_reaches_a_toy_in_order():
    made = program({FIRST: whole()}, scheduler="DPM++ SDE")
    assert distance(both_forms(made, CONDITIONS), made(START, torch.Generator().manual_seed(3), **CONDITIONS)) <= 1e-6


def test_different_operator_sets_are_refused():
    made = program({FIRST: whole(), SECOND: whole(opset=17)}, [FIRST, SECOND] * 3)
    with pytest.raises(UnsupportedError, match="second/step imports opset 17 of ai.onnx and another part .* opset 18"):
        lower(made, form="loop")


def test_an_old_operator_set_is_refused():
    text = "unit (float[2,3] x, float[2] t) => (float[2,3] prediction) {{ prediction = Tanh(x) }}"
    body = Body(unit(text, [Feed("sample"), Feed("timestep")], opset=11))
    for form in FORMS:
        with pytest.raises(UnsupportedError, match="imports opset 11; a program needs opset 13 or later"):
            lower(program({FIRST: body}), form=form)


def test_a_condition_with_the_name_of_an_input_of_the_program_is_refused():
    made = program({FIRST: whole()})
    condition = replace(made.interface.conditions[0], name="step_noise")
    feeds = tuple(replace(f, name="step_noise") if f.name == "text" else f for f in made.bodies[FIRST].step.feeds)
    body = Body(Unit(made.bodies[FIRST].step.model, feeds))
    interface = replace(made.interface, conditions=(condition, made.interface.conditions[1]))
    with pytest.raises(UnsupportedError, match="a condition is named 'step_noise'"):
        lower(replace(made, bodies={FIRST: body}, interface=interface), form="loop")


def test_values_named_like_those_of_the_program_do_not_collide():
    text = """
    unit (float[2,3] sample, float[2] noise) => (float[2,3] guidance_scale) <float[1] initial_scale = {{0.5}}> {{
      row = Mul(sample, initial_scale) guidance_scale = Tanh(row) }}"""
    made = program({FIRST: Body(unit(text, [Feed("sample"), Feed("timestep")], batch=2))})
    assert distance(both_forms(made, CONDITIONS), made(START, **CONDITIONS)) <= 1e-6


def test_functions_of_the_bodies_come_along_and_contradicting_ones_are_refused():
    def with_function(op):
        source = f"""<ir_version: 8, opset_import: ["" : 18, "own" : 1]>
        unit (float[2,3] x, float[2] t) => (float[2,3] prediction) {{ prediction = own.bend(x) }}
        <opset_import: ["" : 18], domain: "own"> bend (a) => (b) {{ b = {op}(a) }}"""
        return Body(Unit(load_model(onnx.parser.parse_model(source)), (Feed("sample"), Feed("timestep"))))

    made = program({FIRST: with_function("Tanh"), SECOND: with_function("Tanh")}, [FIRST, SECOND] * 3)
    assert distance(both_forms(made, CONDITIONS), made(START, **CONDITIONS)) <= 1e-6
    with pytest.raises(UnsupportedError, match="hold different functions"):
        lower(replace(made, bodies={FIRST: with_function("Tanh"), SECOND: with_function("Sin")}), form="loop")


def test_bodies_with_control_flow_are_inlined_with_their_branches():
    text = """
    unit (float[2,3] x, float[2] t) => (float[2,3] prediction) <float half = {{0.5}}, int64 zero = {{0}}> {{
      first = Gather(t, zero) late = Less(first, half)
      prediction = If (late) <then_branch = a () => (float[2,3] r) {{ r = Tanh(x) }},
                              else_branch = b () => (float[2,3] s) {{ s = Sin(x) }}> }}"""
    feeds = [Feed("sample"), Feed("timestep")]
    made = program({FIRST: Body(unit(text, feeds))}, guidance=Guidance(2.0, "calls"))
    made = replace(made, interface=replace(made.interface, timestep_scale=0.001))
    assert distance(both_forms(made, NEGATIVES), made(START, **NEGATIVES)) <= 1e-6


def test_outputs_that_are_inputs_or_constants_are_taken():
    step = "unit (float[2,3] k, float[2,3] c, float[2,3] x) => (float[2,3] p) {{ s = Add(k, c) p = Mul(s, x) }}"
    prologue = """unit (float[2,4] text, float[3] bias) => (float[2,4] text, float[2,3] c)
      <float[2,3] c = {{1, 2, 3, 4, 5, 6}}> {{ unused = Neg(bias) }}"""
    table = """unit (float[2,4] text) => (float[2,3] k) <float[4,3] u = {{{u}}}> {{ k = MatMul(text, u) }}"""
    body = Body(
        unit(step, [Feed("table", index=0), Feed("prologue", index=1), Feed("sample")]),
        unit(prologue, [Feed("condition", "text"), Feed("condition", "bias")]),
        unit(table, [Feed("prologue", index=0)]),
    )
    made = program({FIRST: body})
    u = np.asarray([float(f"{v:.6f}") for v in np.random.default_rng(0).standard_normal(12)]).reshape(4, 3)
    known = CONDITIONS["text"].astype(np.float64) @ u + np.arange(1.0, 7.0).reshape(2, 3)
    expected = made.schedule.run(lambda x, t: known * x, START.astype(np.float64))
    assert distance(both_forms(made, CONDITIONS), expected) <= 1e-6


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_rows_with_and_without_noise_read_their_own_draws(steps):
    made = program({FIRST: whole()}, scheduler="LCM", steps=steps)
    assert made.schedule.draws[-1] == 0 and made.schedule.total_draws == steps - 1
    expected = made(START, torch.Generator().manual_seed(3), **CONDITIONS)
    assert distance(both_forms(made, CONDITIONS), expected) <= 1e-6


@pytest.mark.parametrize(("element", "dtype", "near"), [("double", "float64", 1e-12), ("float16", "float16", 1e-2)])
@pytest.mark.parametrize("guidance", [None, Guidance(2.0, rescale=0.5)], ids=str)
def test_samples_of_other_precisions_keep_theirs(element, dtype, near, guidance):
    batch = 2 if guidance is None else 4
    text = """unit (float[2,3] x, float[2] t, float[2,3] text) => (float[2,3] p) {{
      y = Tanh(x) z = Mul(y, text) p = Tanh(z) }}""".replace("float[", f"{element}[")
    body = Body(unit(text, [Feed("sample"), Feed("timestep"), Feed("condition", "text")], batch=batch))
    made = program({FIRST: body}, guidance=guidance, scheduler="DPM++ SDE")
    type_ = TensorType(dtype, (2, 3))
    timestep = TensorType(dtype, (batch,))
    made = replace(made, interface=replace(made.interface, sample=type_, timestep=timestep,
                                           conditions=(Condition("text", type_),)))  # fmt: skip
    start, given = START.astype(dtype), {"text": START[::-1].astype(dtype)}
    if guidance is not None:
        given["negative_text"] = -START.astype(dtype)
    results = [lower(made, form=f)(start, np.random.default_rng(3), **given) for f in FORMS]
    assert results[0].dtype == dtype and np.array_equal(*results)
    assert distance(results[0], made(start, np.random.default_rng(3), **given)) <= near


def test_bodies_and_values_may_have_any_names():
    names = ["row", "program", "rows of row", "denoiser/step"]
    made = program({name: split(seed=i) for i, name in enumerate(names)}, [*names, names[0], names[1]])
    assert distance(both_forms(made, CONDITIONS), made(START, **CONDITIONS)) <= 1e-6

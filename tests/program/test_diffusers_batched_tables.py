"""Accelerated pipelines whose tables take all rows: as one program, and step by step."""

from diffusers_pairs import images, pair, relative
from tiny_pipelines import stable_diffusion_3

BEFORE = ("hoist", "clean-up")
PASSES = ("hoist", "batch-tables", "clean-up")


def test_requests_of_any_length_and_single_steps_are_those_of_tables_row_by_row(tmp_path):
    pipe = stable_diffusion_3(tmp_path)
    before, after = (pair(pipe, passes=p, backend="onnxruntime", verify="match").fast for p in (BEFORE, PASSES))
    callback = {"callback_on_step_end": lambda pipe, step, time, tensors: tensors}
    for request in ({}, {"num_inference_steps": 3, "prompt": "blue dog"}, callback):
        assert relative(images(before, **request), images(after, **request)) < 1e-6
    assert after.graphopt_report.last.reason == "callback_on_step_end is given"
    results = after.graphopt_report.compiled
    statuses = [
        a.status for result in results for r in result.passes if r.text == "batch-tables" for a in r.applications
    ]
    assert statuses and set(statuses) == {"kept"}

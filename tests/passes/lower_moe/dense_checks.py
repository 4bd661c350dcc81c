"""What tests of sums over all experts share: blocks of WIDE features as ONNX models, lowered and run beside torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

import graphopt

WIDE = 8


def exported(block: torch.nn.Module) -> onnx.ModelProto:
    sizes = ({0: torch.export.Dim("tokens", min=1, max=4096)},)
    x = torch.randn(5, WIDE)
    program = torch.onnx.export(block.eval(), (x,), dynamo=True, dynamic_shapes=sizes, verbose=False)
    assert program is not None
    return program.model_proto


def lowered(block: torch.nn.Module) -> Any:
    """What the pass makes of `block`, equal to torch for several numbers of tokens whether verified or not."""
    for verify in ("off", "match"):
        result = graphopt.optimize(exported(block), "lower-moe", target="onnxruntime", verify=verify)
        run = onnxruntime.InferenceSession(result.model.SerializeToString())
        for count in (1, 7, 64):
            x = torch.randn(count, WIDE, generator=torch.Generator().manual_seed(count))
            (found,) = run.run(None, {run.get_inputs()[0].name: x.numpy()})
            expected = block(x).detach().numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert not result.report.undone
    return result


def is_lowered(result: Any) -> bool:
    return any(a.rule == "dense-experts" for a in result.report.kept)

"""The weights that a compiled function takes, as a file: by name, in its order, the same bits."""

from xla_support import torch  # first: it skips where JAX is missing  # isort: skip

import jax
import ml_dtypes
import numpy as np
import pytest
from onnx_models import conv_bn

import graphopt
from graphopt.backends.xla.arrays import exact_types

X = torch.ones(2, 4)


def read(run, folder):
    """The arrays of the file, by name, as `run` takes them."""
    run.save_weights(folder / "weights.npz")
    assert [p.name for p in folder.iterdir()] == ["weights.npz"]
    found = np.load(folder / "weights.npz", allow_pickle=False)
    expected, _ = run.arguments()
    arrays = {}
    for name, type_ in zip(found.files, expected, strict=True):
        array = found[name].view(ml_dtypes.bfloat16) if type_.dtype == ml_dtypes.bfloat16 else found[name]
        assert (array.dtype, array.shape) == (type_.dtype, type_.shape)
        arrays[name] = array
    return arrays


def called_with(run, arrays, *inputs):
    with exact_types():
        return jax.jit(run.function())(list(arrays.values()), *inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_of_a_torch_model_are_read_back_as_its_function_takes_them(dtype, tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)).eval().to(dtype)
    run = graphopt.lower(module, "xla", example_inputs=(X.to(dtype),), check=False)
    arrays = read(run, tmp_path)
    assert {*arrays} == {*module.state_dict()}
    for name, array in arrays.items():
        assert np.array_equal(array.astype(np.float64), module.state_dict()[name].double().numpy())
    (got,) = called_with(run, arrays, [np.asarray(run.arguments()[1][0].dtype.type(1)) * np.ones((2, 4), array.dtype)])
    assert np.array_equal(np.asarray(got, np.float64), run(X.to(dtype)).double().numpy())


def test_weights_of_an_onnx_model_are_read_back(tmp_path):
    run = graphopt.lower(conv_bn(batch=2), "xla", check=False)
    arrays = read(run, tmp_path)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    assert np.array_equal(called_with(run, arrays, [x])[0], run(x)[0])


def test_weights_of_a_program_are_named_by_the_graph_that_reads_them(tmp_path):
    pytest.importorskip("diffusers")
    from xla_programs import denoiser, program_of

    run = graphopt.lower(program_of(denoiser()), "xla", check=False)
    arrays = read(run, tmp_path)
    assert {*arrays} == {f"denoiser/step/{name}" for name in denoiser().state_dict()}
    for name, tensor in denoiser().state_dict().items():
        assert np.array_equal(arrays[f"denoiser/step/{name}"], tensor.numpy())

"""What tests of the XLA backend share; importing it skips a file where JAX or torchax is not installed."""

import importlib.util

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("jax", reason="JAX is not installed: pip install 'graphopt[xla]'")
# Not imported: as tests would do it, torchax makes "jax" a device of torch, which breaks torch.export of branches.
if importlib.util.find_spec("torchax") is None:
    pytest.skip("torchax is not installed: pip install 'graphopt[xla]'", allow_module_level=True)


class Function(torch.nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)

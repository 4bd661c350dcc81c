"""What tests of the XLA backend share; importing it skips a file where JAX or torchax is not installed."""

import importlib.util
import os

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("jax", reason="JAX is not installed: pip install 'graphopt[xla]'")
# Not imported: as tests would do it, torchax makes "jax" a device of torch, which breaks torch.export of branches.
if importlib.util.find_spec("torchax") is None:
    pytest.skip("torchax is not installed: pip install 'graphopt[xla]'", allow_module_level=True)

from torch_functions import Counter, Function  # noqa: E402

__all__ = ["Counter", "Function", "torch", "tpu"]
LIBTPU = importlib.util.find_spec("libtpu") is not None
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # test processes run side by side


def tpu(test):
    """Marks a test that compiles for TPUs."""
    reason = "libtpu is not installed: pip install 'graphopt[tpu]' (no TPU is needed)"
    return pytest.mark.tpu(pytest.mark.skipif(not LIBTPU, reason=reason)(test))

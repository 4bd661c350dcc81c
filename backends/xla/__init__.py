"""The backend "xla": torch and ONNX models as JAX functions, compiled by XLA for CPUs, GPUs and TPUs.

Torch: `kernels` knows how each torch op is said in JAX, `function` makes a program a function of JAX arrays and holds
every result against the type that torch gave it, `conformance` holds every op of a program against torch on numbers,
`compiled` is what a model becomes.

ONNX, by way of the vocabulary: `domain` runs the meanings of its ops on JAX arrays, `calls` has kernels for some,
`onnx_sizes` fixes the sizes of a model, `onnx_function` makes it a function, `onnx_check` holds every call against
onnxruntime, `onnx_compiled` is what a model becomes.

Both: `bound` says what may differ, `portable` writes a model as a file that needs JAX alone.
"""

from graphopt.backends.xla.backend import XlaBackend

__all__ = ["XlaBackend"]

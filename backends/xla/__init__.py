"""The backend "xla": torch and ONNX models as JAX functions, compiled by XLA for CPUs, GPUs and TPUs.

`runtimes` chooses: JAX, or torch_xla where JAX is not installed.

Torch: `kernels` knows how each torch op is said in JAX, `function` makes a program a function of JAX arrays and holds
every result against the type that torch gave it, `conformance` holds every op of a program against torch on numbers (by
`op_check`), `compiled` is what a model becomes. A sampling program becomes `program`: `units` are its graphs, `loop`
and `row` what runs them, `sharding` and `tensor_parallel` divide it over devices.

ONNX, by way of the vocabulary: `domain` runs the meanings of its ops on JAX arrays, `calls` has kernels for some,
`onnx_sizes` fixes the sizes of a model, `onnx_steps` and `onnx_function` make it a function, `onnx_check` holds every
call against onnxruntime, `onnx_compiled` is what a model becomes. `torch_calls` lets torch ops run that way too.

By torch_xla: `lazy_ops` takes apart what it has no kernel for, `lazy_check` is its `op_check`, `lazy_graph` records a
graph on the device, `lazy` is what a model becomes.

All: `calling` is how a torch program is called, `torch_ops` and `weights` what is known of it, `bound` says what may
differ, `portable` writes a model as a file that needs JAX alone.
"""

from graphopt.backends.xla.backend import XlaBackend

__all__ = ["XlaBackend"]

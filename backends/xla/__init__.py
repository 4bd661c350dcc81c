"""The backend "xla": torch programs as JAX functions, compiled by XLA for CPUs, GPUs and TPUs.

`kernels` knows how each torch op is said in JAX, `function` makes a program a function of JAX arrays and holds every
result against the type that torch gave it, `conformance` holds every op of a program against torch on numbers,
`compiled` is what a model becomes, `portable` writes it as a file that needs JAX alone. A sampling program becomes
`program`: `units` are its graphs, `loop` and `row` what runs them, `sharding` and `tensor_parallel` divide it over
devices.
"""

from graphopt.backends.xla.backend import XlaBackend

__all__ = ["XlaBackend"]

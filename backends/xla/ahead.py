"""Compiling for a TPU on a machine that has none: libtpu is the compiler, and takes the name of a topology."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from graphopt.backends.xla.ahead_report import AheadReport, structure
from graphopt.backends.xla.arrays import exact_types
from graphopt.backends.xla.files import write_bytes
from graphopt.backends.xla.hlo import parse
from graphopt.errors import GraphoptError, MissingExtraError, PipelineError, UnsupportedError

TOPOLOGIES = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
"""The smallest topology of each generation that libtpu 0.0.42.1 takes."""
_NAME = re.compile(r"[a-z][a-z0-9]*:\d+(x\d+){1,2}")
LOCKED = (
    "backend 'xla': another process on this machine has libtpu open; wait for it, or set ALLOW_MULTIPLE_LIBTPU_LOAD=1, "
    "which is safe where no process runs on a TPU ({error})"
)


class CompiledAhead:
    """A model as a TPU executable, and what its compiler says about it. It cannot be called here."""

    def __init__(self, executable: bytes, hlo: str, report: AheadReport) -> None:
        self.executable = executable
        """As PJRT serialises it, for libtpu of the version in the report and chips of its topology."""
        self.hlo = hlo
        """The optimised and scheduled program as text."""
        self.report = report

    def save(self, folder: str | Path) -> None:
        """Write model.pjrt (the executable), model.hlo.txt and report.json into `folder`, which is made.

        Raises:
            OSError: a file cannot be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / "model.pjrt", self.executable)
        write_bytes(folder / "model.hlo.txt", self.hlo.encode())
        data = json.dumps(self.report.to_dict(), indent=2, sort_keys=True, allow_nan=False)
        write_bytes(folder / "report.json", f"{data}\n".encode())


def tpu_device(topology: str) -> Any:
    """The first chip of `topology`, as something to compile for.

    Raises:
        PipelineError: no name of a topology, or none that libtpu knows.
        MissingExtraError: libtpu is not installed.
        UnsupportedError: it is in use by another process.
    """
    if not _NAME.fullmatch(topology):
        raise PipelineError(f"topology {topology!r}: expected a chip and a grid of them, as in {', '.join(TOPOLOGIES)}")
    try:
        version("libtpu")
    except PackageNotFoundError:
        raise MissingExtraError(
            "backend 'xla': compiling for a TPU needs its compiler, libtpu, which is not installed: pip install "
            "'graphopt[tpu]' (libtpu 0.0.42.1, 213 MB; no TPU is needed)"
        ) from None
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    except RuntimeError as error:
        raise _refused(topology, error) from error


def _refused(topology: str, error: Exception) -> GraphoptError:
    if "lockfile" in str(error):
        return UnsupportedError(LOCKED.format(error=error))
    known = ", ".join(TOPOLOGIES)
    return PipelineError(f"topology {topology!r} is none that libtpu compiles for ({error}); known to work: {known}")


def compile_ahead(
    function: Callable[..., Any], arguments: Sequence[Any], topology: str, precision: str
) -> CompiledAhead:
    """`function`, traced with the shapes and dtypes of `arguments`, compiled for the first chip of `topology`.

    Args:
        function: of JAX arrays.
        arguments: trees of arrays, or of anything with a shape and a dtype; only these are looked at.
        topology: as in "v5e:2x2".
        precision: of float32 products, as in `Settings`.

    Raises:
        PipelineError, MissingExtraError: as `tpu_device`.
        UnsupportedError: libtpu does not compile it.
    """
    device = tpu_device(topology)
    placed = jax.sharding.SingleDeviceSharding(device)
    with exact_types(precision):
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), list(arguments))
        jitted = jax.jit(function, in_shardings=placed, out_shardings=placed, keep_unused=True)
        lowered = jitted.trace(*shapes).lower(lowering_platforms=("tpu",))
        started = time.perf_counter()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise UnsupportedError(f"backend 'xla': libtpu does not compile this for {topology}: {error}") from error
        seconds = time.perf_counter() - started
    text = compiled.as_text()
    known: dict[str, Any] = {
        "topology": topology,
        "device": str(device.device_kind),
        "precision": precision,
        "arguments": tuple(f"{a.dtype}{list(a.shape)}" for a in jax.tree.leaves(shapes)),
    }
    report = AheadReport(**known, compile_seconds=seconds, **_counts(compiled), **structure(parse(text)))
    return CompiledAhead(compiled.runtime_executable().serialize(), text, report)


def _counts(compiled: Any) -> dict[str, Any]:
    """What the compiler itself counts."""
    costs, stats = compiled.cost_analysis(), compiled.memory_analysis()
    return {
        "versions": {name: version(name) for name in ("jax", "jaxlib", "libtpu")},
        "flops": float(costs.get("flops", 0.0)),
        "transcendentals": float(costs.get("transcendentals", 0.0)),
        "bytes_accessed": float(costs.get("bytes accessed", 0.0)),
        "memory": {
            "arguments": stats.argument_size_in_bytes,
            "outputs": stats.output_size_in_bytes,
            "temporaries": stats.temp_size_in_bytes,
            "code": stats.generated_code_size_in_bytes,
            "aliased": stats.alias_size_in_bytes,
            "peak": stats.peak_memory_in_bytes,
        },
    }

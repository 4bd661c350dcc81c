"""The options of the onnxruntime backend, and the session options that they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any

OPTIMIZATION_LEVELS: Mapping[str, str] = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "off": "ORT_DISABLE_ALL",
}
_FATAL = 4


@dataclass(frozen=True)
class Settings:
    """Options of `graphopt.lower(model, "onnxruntime", ...)`."""

    providers: Sequence[str | tuple[str, Mapping[str, Any]]] = ("CPUExecutionProvider",)
    """Execution providers, most preferred first; each a name or (name, its options)."""
    threads: int | None = None
    """Threads within an operator; None leaves it to onnxruntime."""
    inter_threads: int | None = None
    """Threads between operators; more than one runs independent operators in parallel."""
    optimization: str = "all"
    """onnxruntime's own graph optimisations: "all", "extended", "basic" or "off"."""
    session_options: Mapping[str, str] = field(default_factory=dict)
    """Session configuration entries, such as {"session.set_denormal_as_zero": "1"}."""
    io_binding: bool | None = None
    """Whether inputs and outputs are bound in place. None binds tensors, which saves their copies, and not
    arrays, which onnxruntime takes without a copy and faster without a binding."""
    save_path: str | Path | None = None
    """Where to write the model as onnxruntime has optimised it."""
    profile: str | Path | None = None
    """Prefix of the file that onnxruntime's profile is written to by `Compiled.end_profiling`."""
    compare: bool = True
    """Whether what torch's exporter makes of a torch model is run beside the model before it is handed over."""

    def __post_init__(self) -> None:
        _require_count("threads", self.threads)
        _require_count("inter_threads", self.inter_threads)
        if self.optimization not in OPTIMIZATION_LEVELS:
            levels = ", ".join(OPTIMIZATION_LEVELS)
            raise ValueError(f"optimization is {self.optimization!r}, expected one of {levels}")
        if not isinstance(self.session_options, Mapping):
            raise ValueError(
                f"session_options is {self.session_options!r}, expected a mapping of configuration entries"
            )
        if self.io_binding is not None and not isinstance(self.io_binding, bool):
            raise ValueError(f"io_binding is {self.io_binding!r}, expected True, False or None")
        if not isinstance(self.compare, bool):
            raise ValueError(f"compare is {self.compare!r}, expected True or False")
        for name, path in (("save_path", self.save_path), ("profile", self.profile)):
            if path is not None and not isinstance(path, str | PathLike):
                raise ValueError(f"{name} is {path!r}, expected a path or None")
        _require_providers(self.providers)


def _require_count(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
        raise ValueError(f"{name} is {value!r}, expected a positive integer or None")


def _require_providers(providers: object) -> None:
    import onnxruntime

    if isinstance(providers, str) or not isinstance(providers, Sequence) or not providers:
        raise ValueError(f"providers is {providers!r}, expected a list of names or of (name, options)")
    available = onnxruntime.get_available_providers()
    for provider in providers:
        name = provider if isinstance(provider, str) else provider[0]
        if name not in available:
            raise ValueError(f"this onnxruntime has no provider {name!r}; it has {', '.join(available)}")


def make_session_options(settings: Settings, save_to: Path | None) -> Any:
    """`onnxruntime.SessionOptions` for `settings`; the optimised model is written to `save_to`, if given."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    level = OPTIMIZATION_LEVELS[settings.optimization]
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = _FATAL  # everything worse than a warning is raised, and said there
    if settings.threads is not None:
        options.intra_op_num_threads = int(settings.threads)
    if settings.inter_threads is not None:
        options.inter_op_num_threads = int(settings.inter_threads)
        if settings.inter_threads > 1:
            options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    for key, value in settings.session_options.items():
        options.add_session_config_entry(str(key), str(value))
    if settings.profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(settings.profile)
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
    return options

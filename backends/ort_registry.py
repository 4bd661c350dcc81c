"""The exporter's registry of what each torch operator is in ONNX, read once instead of at every export.

torch.onnx.export parses the Python source of its 500 functions each time, which takes longer than the rest of exporting
a small model.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_lock = threading.RLock()
_read: dict[Any, Any] = {}


@contextmanager
def remembered_registry() -> Iterator[None]:
    """Inside, the exporter gets copies of the registry that it read first; one thread at a time is inside.

    It is read again when torch has other operators than then, such as those of torchvision once that is imported.
    Nothing is changed where torch's exporter does not have the function that is replaced.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        method, read = vars(ONNXRegistry)["from_torchlib"], ONNXRegistry.from_torchlib
    except (ImportError, KeyError):
        yield
        return

    def remembered(*args: Any, **kwargs: Any) -> Any:
        key = args, tuple(sorted(kwargs.items())), len(torch._C._dispatch_get_all_op_names())
        if key not in _read:
            _read.clear()
            _read[key] = read(*args, **kwargs)
        registry = copy.copy(_read[key])
        registry.functions = {target: list(known) for target, known in registry.functions.items()}
        return registry

    with _lock:
        ONNXRegistry.from_torchlib = staticmethod(remembered)
        try:
            yield
        finally:
            ONNXRegistry.from_torchlib = method

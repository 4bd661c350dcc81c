"""Which sessions of a sampling program are open: those of all its bodies, or of one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir

from graphopt.backends.ort_session import open_session
from graphopt.backends.ort_settings import Settings


class Residents:
    """Sessions by body and unit name. onnxruntime has a copy of the weights of every open one."""

    def __init__(
        self, models: Mapping[tuple[str, str], Callable[[], ir.Model]], settings: Settings, one_body: bool
    ) -> None:
        """Opens all, in turn if there is to be one body at a time: so what onnxruntime refuses is known at once.

        Args:
            models: what makes the model of each session, in the order in which bodies are called.
            settings: of every session.
            one_body: whether sessions of different bodies are never open at the same time.
        """
        self.one_body = one_body
        self._models = models
        self._settings = settings
        self._open: dict[tuple[str, str], Any] = {}
        for body, unit in [*models][::-1]:  # the first body is the one that stays
            self.enter(body)
            self.session(body, unit)

    def enter(self, body: str) -> None:
        """Closes the sessions of other bodies, if there is to be one at a time. Nobody else may hold them."""
        if self.one_body:
            self._open = {key: session for key, session in self._open.items() if key[0] == body}

    def session(self, body: str, unit: str) -> Any:
        """The session of a unit of the body that was entered last."""
        key = (body, unit)
        if key not in self._open:
            self._open[key] = open_session(self._models[key](), self._settings)
        return self._open[key]

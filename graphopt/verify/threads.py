"""One thread for the arithmetic of fragments.

A fragment is small, and its arithmetic goes back and forth between numpy and torch. Each has a pool of threads of its
own (BLAS's, OpenMP's) that waits for more work by spinning, so that each pool takes the cores from the other.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

from threadpoolctl import ThreadpoolController


class ThreadPools:
    """The pools of the libraries that are loaded when it is first asked."""

    @cached_property
    def _controller(self) -> ThreadpoolController:
        return ThreadpoolController()

    def limited_to_one(self) -> AbstractContextManager[Any]:
        """A context in which every pool has one thread, and after which each has what it had."""
        limits: AbstractContextManager[Any] = self._controller.limit(limits=1)
        return limits

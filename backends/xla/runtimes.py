"""Which of the two ways to XLA is taken: torchax and JAX where both are installed, else torch_xla."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from graphopt.errors import MissingExtraError, UnsupportedError

MISSING = (
    "backend 'xla' needs JAX and torchax ({error}); install them with pip install 'graphopt[xla]', which pins the "
    "versions that were tested"
)


def jax_is_there() -> bool:
    """Whether JAX and torchax are installed."""
    return find_spec("jax") is not None and _version("torchax") is not None


def require_jax() -> None:
    """
    Raises:
        MissingExtraError: JAX or torchax is not installed or cannot be imported.
    """
    try:
        import jax  # noqa: F401

        version("torchax")
    except (ImportError, PackageNotFoundError) as error:
        raise MissingExtraError(MISSING.format(error=error)) from error


def require_jax_for(what: str) -> None:
    """`require_jax`, with a reason where torch_xla is installed, which cannot do it.

    Args:
        what: what is to be done, as in "sampling programs".
    """
    if not jax_is_there() and torch_xla_is_there():
        raise MissingExtraError(
            f"backend 'xla': {what} need JAX and torchax, and here only torch_xla is installed, which runs torch "
            "models; install them with pip install 'graphopt[xla]'"
        )
    require_jax()


def torch_xla_is_there() -> bool:
    """Whether torch_xla is installed."""
    return _version("torch_xla") is not None


def require_torch_xla() -> None:
    """
    Raises:
        UnsupportedError: torch_xla is made for another torch than is installed, or cannot be imported.
    """
    own, torch = _version("torch_xla") or "", _version("torch") or "none"
    if own.split(".")[:2] != torch.split(".")[:2]:
        needed = ".".join(own.split(".")[:2])
        raise UnsupportedError(
            f"backend 'xla': torch_xla {own} needs torch {needed}, and torch {torch} is installed; install that torch, "
            "or JAX and torchax with pip install 'graphopt[xla]'"
        )
    try:
        import torch_xla  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(f"backend 'xla': torch_xla {own} cannot be imported: {error}") from error


def jax_runtime() -> str:
    """The first way, with its versions."""
    return f"torchax {_version('torchax')} on JAX {_version('jax')}"


def torch_xla_runtime() -> str:
    """The second way, with its versions."""
    return f"torch_xla {_version('torch_xla')} on torch {_version('torch')}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

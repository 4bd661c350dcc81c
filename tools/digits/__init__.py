"""Two small diffusion models of handwritten digits, trained and shipped, with what measures their samples.

Importing anything of it without torch or diffusers raises MissingExtraError.
"""

from __future__ import annotations

from importlib.util import find_spec

from graphopt.errors import MissingExtraError

for _package in ("torch", "diffusers"):
    if find_spec(_package) is None:
        raise MissingExtraError(
            f"the digit models need {_package}, which is not installed: pip install 'graphopt[diffusers]'"
        )

"""The options of the XLA backend."""

from __future__ import annotations

from dataclasses import dataclass

PLATFORMS = ("cpu", "gpu", "tpu")
PRECISIONS = ("default", "high", "highest")


@dataclass(frozen=True)
class Settings:
    """Options of `graphopt.lower(model, "xla", ...)`."""

    platform: str = "cpu"
    """Where it runs: "cpu", "gpu" or "tpu"."""
    precision: str = "highest"
    """How float32 products are computed where the hardware has faster, coarser ways (TPUs: "default" is one pass of
    bfloat16, "high" three, "highest" float32). On CPUs all are float32."""
    check: bool = True
    """Whether every op is compared with torch's or onnxruntime's on numbers, on the CPU, before it is run."""

    def __post_init__(self) -> None:
        if self.platform not in PLATFORMS:
            raise ValueError(f"platform is {self.platform!r}, expected one of {', '.join(PLATFORMS)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        if not isinstance(self.check, bool):
            raise ValueError(f"check is {self.check!r}, expected True or False")

"""The options of the XLA backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PLATFORMS = ("cpu", "gpu", "tpu")
PRECISIONS = ("default", "high", "highest")
VECTOR_WIDTHS = (128, 256, 512)


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

    vector_width: int = 512
    """Bits that XLA fills on CPUs where it writes loops, at the most; fewer where the CPU has no such registers. XLA's
    own choice is 256, for CPUs that lower their clock for wider ones."""
    buckets: Sequence[int] | Mapping[str, Sequence[int]] | None = None
    """Sizes that open dimensions are padded to, for all of them or by input and axis, as in {"x:0": (1, 4, 16)}. None
    compiles for each size. What would mix padding in is told what is kept."""

    def compiler_options(self, devices: int = 1) -> dict[str, int | str]:
        """What XLA is told beside a function for so many devices.

        Loops of a CPU that is several devices are not divided between threads, of which each device has its own: with
        jaxlib 0.10.2 what was divided made the samplings of a large U-Net differ from torch's by 3e-4.
        """
        if self.platform != "cpu":
            return {}
        undivided = {"xla_disable_hlo_passes": "cpu-parallel-task-assigner"} if devices > 1 else {}
        return {"xla_cpu_prefer_vector_width": self.vector_width, **undivided}

    def __post_init__(self) -> None:
        if self.platform not in PLATFORMS:
            raise ValueError(f"platform is {self.platform!r}, expected one of {', '.join(PLATFORMS)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        if type(self.vector_width) is not int or self.vector_width not in VECTOR_WIDTHS:
            widths = ", ".join(map(str, VECTOR_WIDTHS))
            raise ValueError(f"vector_width is {self.vector_width!r}, expected one of {widths}")
        if not isinstance(self.check, bool):
            raise ValueError(f"check is {self.check!r}, expected True or False")
        for sizes in self.buckets.values() if isinstance(self.buckets, Mapping) else (self.buckets or (1,),):
            if not isinstance(sizes, Sequence) or not sizes or not all(type(n) is int and n > 0 for n in sizes):
                raise ValueError(f"buckets are {self.buckets!r}, expected positive integers, or some by input and axis")

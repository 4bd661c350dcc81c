"""What the compiler of TPUs says about a model that it has compiled: counts, memory, layouts, padding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from graphopt.backends.xla.hlo import Buffer, Hlo, Instruction

if TYPE_CHECKING:
    from rich.console import RenderableType

NOT_RUN = "compiled for TPU, not run on one"
"""What holds for every figure of a report."""
WORST_SHOWN = 5
"""Layouts of the largest padding that are listed."""
_HOST_SPACE = 5
_HOST_TARGETS = ("callback", "MoveToHost", "MoveToDevice", "SendToHost", "RecvFromHost")


@dataclass(frozen=True)
class Padding:
    """How much of the memory of some arrays is padding, to whole tiles."""

    logical_bytes: int
    padded_bytes: int

    @classmethod
    def of(cls, buffers: Iterable[Buffer]) -> Padding:
        found = list(buffers)
        return cls(sum(b.logical_bytes for b in found), sum(b.padded_bytes for b in found))

    @property
    def waste(self) -> float:
        """Share of the memory that holds no number of the arrays, in [0, 1)."""
        return 1 - self.logical_bytes / self.padded_bytes if self.padded_bytes else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "waste": self.waste}


@dataclass(frozen=True)
class AheadReport:
    """What is known of a compiled model without running it. Counts are the compiler's own, of one run; a loop's body
    counts once, however often it runs."""

    topology: str
    device: str
    """The compiler's name of the chip."""
    versions: dict[str, str]
    precision: str
    arguments: tuple[str, ...]
    """Types of what the executable takes, in order: weights, then inputs, those that nothing reads too."""
    compile_seconds: float
    flops: float
    transcendentals: float
    bytes_accessed: float
    """Bytes that the instructions read and write, from any memory."""
    memory: dict[str, int]
    """Bytes on the device: arguments, outputs, temporaries, code, aliased, peak."""
    loops: int
    """Loops in the executable."""
    fusions: dict[str, int]
    """How many kernels there are of each kind of fusion."""
    copies: Padding
    """What is only moved to another layout or memory."""
    copy_count: int
    host_transfers: tuple[str, ...]
    """Names of the instructions that exchange data with the host."""
    layouts: dict[str, int]
    """Element type and tiles to the number of arrays that lie so."""
    padding: Padding
    """Of all arrays, each once: arguments and what the kernels write."""
    argument_padding: Padding
    """Of weights and inputs alone."""
    worst: tuple[dict[str, Any], ...]
    """The layouts with the largest padding."""

    def to_dict(self) -> dict[str, Any]:
        """As data of JSON."""
        found = asdict(self)
        for name in ("copies", "padding", "argument_padding"):
            found[name] = getattr(self, name).to_dict()
        for name in ("arguments", "host_transfers", "worst"):
            found[name] = list(getattr(self, name))
        return found | {"status": NOT_RUN}

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        figures = Table(box=None, pad_edge=False, show_header=False)
        figures.add_column()
        figures.add_column(justify="right")
        for name, value in self._rows():
            figures.add_row(Text(name), Text(value))
        padded = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("most padded", "arrays", "bytes", "with padding"):
            padded.add_column(name, justify="left" if name == "most padded" else "right")
        for row in self.worst:
            cells = (f"{row[k]:,}" for k in ("count", "logical_bytes", "padded_bytes"))
            padded.add_row(Text(row["layout"]), *cells)
        return Group(Text(f"{self.device} ({self.topology}): {NOT_RUN}"), figures, padded)

    def _rows(self) -> Iterator[tuple[str, str]]:
        body = ", a loop's body counted once" if self.loops else ""
        yield f"FLOPs{body}", f"{self.flops:,.0f}"
        yield f"bytes accessed{body}", f"{self.bytes_accessed:,.0f}"
        for name in ("peak", "arguments", "outputs", "temporaries", "code"):
            yield f"memory, {name}" if name == "peak" else f"  {name}", f"{self.memory[name]:,}"
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.fusions.items())
        yield "fusions", f"{sum(self.fusions.values())} ({kinds})" if kinds else "0"
        yield "copies", f"{self.copy_count} ({self.copies.padded_bytes:,} bytes)"
        yield "loops", str(self.loops)
        yield "host transfers", str(len(self.host_transfers))
        yield "layouts", ", ".join(f"{count} {layout}" for layout, count in self.layouts.items())
        yield "padding", f"{self.padding.waste:.0%} of {self.padding.padded_bytes:,} bytes"
        yield "  of the arguments", f"{self.argument_padding.waste:.0%} of {self.argument_padding.padded_bytes:,} bytes"
        yield "compile time", f"{self.compile_seconds:.1f} s"


def structure(hlo: Hlo) -> dict[str, Any]:
    """The fields of a report that are read off the compiled module."""
    scheduled = list(hlo.scheduled())
    buffers = hlo.buffers()
    copies = [i for i in scheduled if i.opcode in ("copy", "copy-done")]
    return {
        "loops": sum(i.opcode == "while" for i in scheduled),
        "fusions": _counted(_kind(i) for i in scheduled if i.opcode == "fusion"),
        "copies": Padding.of(b for i in copies for b in i.results),
        "copy_count": len(copies),
        "host_transfers": tuple(i.name for i in scheduled if _is_host_transfer(i)),
        "layouts": _counted(f"{b.dtype} {b.layout}" for b in buffers),
        "padding": Padding.of(buffers),
        "argument_padding": Padding.of(hlo.arguments),
        "worst": _worst(buffers),
    }


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _kind(instruction: Instruction) -> str:
    _, _, rest = instruction.text.partition("kind=")
    return rest.partition(",")[0] or "unknown"


def _is_host_transfer(instruction: Instruction) -> bool:
    if instruction.opcode in ("infeed", "outfeed"):
        return True
    if instruction.opcode in ("send", "recv"):
        return "is_host_transfer=true" in instruction.text
    if instruction.opcode == "custom-call":
        _, _, rest = instruction.text.partition('custom_call_target="')
        return any(target in rest.partition('"')[0] for target in _HOST_TARGETS)
    return any(b.space == _HOST_SPACE for b in instruction.results)


def _worst(buffers: Iterable[Buffer]) -> tuple[dict[str, Any], ...]:
    counts = Counter((str(b), b.logical_bytes, b.padded_bytes) for b in buffers)
    rows: list[dict[str, Any]] = [
        {"layout": layout, "count": count, "logical_bytes": count * logical, "padded_bytes": count * padded}
        for (layout, logical, padded), count in counts.items()
        if padded > logical
    ]
    return tuple(sorted(rows, key=lambda r: (r["logical_bytes"] - r["padded_bytes"], r["layout"]))[:WORST_SHOWN])

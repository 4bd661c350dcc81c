"""A report as tables for people."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from graphopt.pipeline.report import PassRecord, Report, Size, rows
from graphopt.rewrite.contract import Application

WIDTH = 110
"""Columns of the plain text form."""
UNDONE_SHOWN = 5
"""Undone applications per pass that are named."""
REASONS_SHOWN = 3
"""Reasons per rule that are given for its refusals; the data of the report has them all."""


def report_table(report: Report) -> RenderableType:
    """Title, a row a rule, the sizes, what was spent of the budget, then what was undone and why rules refused."""
    return Group(_title(report), _rules(report), _sizes(report), *_budget(report), *_notes(report))


def report_text(report: Report) -> str:
    """The same as plain text."""
    out = io.StringIO()
    Console(file=out, width=WIDTH, color_system=None).print(report_table(report))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _title(report: Report) -> Text:
    kept = len(report.kept)
    carrying = f"{_percent(report.coverage())} with evidence" if kept else "nothing applied"
    if proofs := _proofs(report):
        carrying += f", {proofs}"
    skipped = sum(a.status == "skipped" for a in report.applications)
    return Text(
        f"{report.model}: {report.pipeline or 'no passes'}\n"
        f"{kept} application{'' if kept == 1 else 's'} kept, {carrying} (verify={report.verify}), "
        f"{len(report.undone)} undone, {f'{skipped} skipped, ' if skipped else ''}{report.seconds:.2f} s"
    )


def _proofs(report: Report) -> str:
    """How much of what was kept is proved or right by construction, where proofs were asked for."""
    settled, kept = _settled(report.kept), len(report.kept)
    return f"{_percent(settled / kept)} proved" if kept and _asked(report) else ""


def _percent(share: float) -> str:
    """Rounded, but for all and none, which are only said where they are true."""
    return f"{share if share in (0.0, 1.0) else min(max(share, 0.01), 0.99):.0%}".replace("%", " %")


def _asked(report: Report) -> bool:
    return any(a.evidence.proof is not None for a in report.kept)


def _settled(applications: Iterable[Application]) -> int:
    """How many need no more evidence than algebra or their construction give."""
    proofs = [(a.evidence.kind, a.evidence.proof) for a in applications]
    return sum(kind == "construction" if proof is None else proof.holds for kind, proof in proofs)


def _rules(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("pass", "rule"):
        table.add_column(name, overflow="fold")
    proved = ("proved",) if _asked(report) else ()
    for name in ("tried", "matched", "applied", *proved, "undone", "refused", "worst/allowed", "seconds"):
        table.add_column(name, justify="right")
    for record in report.passes:
        shown = list(rows(record)) or None
        if shown is None:
            table.add_row(Text(record.title), *[""] * (7 + len(proved)), f"{record.seconds:.2f}")
        for i, (rule, stats, worst) in enumerate(shown or ()):
            kept = [a for a in record.of_rule(rule) if a.status == "kept"]
            settled = [_settled(kept)] if proved else []
            counts = (stats.tried, stats.matched, stats.applied, *settled, stats.undone, stats.refused.total())
            worst_text = "-" if worst is None else f"{worst:.2g}"
            shown_name = Text(record.title if i == 0 else "")
            table.add_row(shown_name, Text(rule), *map(str, counts), worst_text, f"{stats.seconds:.2f}")
    return table


def _sizes(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("size", overflow="fold")
    for name in ("nodes", "parameters", "bytes", "FLOPs"):
        table.add_column(name, justify="right")
    if report.passes:
        table.add_row("before", *_size_cells(report.passes[0].before))
    for record in report.passes:
        table.add_row(Text(f"after {record.title}"), *_size_cells(record.after))
    return table


def _budget(report: Report) -> Iterator[Table]:
    spent = [(record, record.spending) for record in report.passes if record.spending is not None]
    if not spent:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("budget", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("before", "after", "limit"):
        table.add_column(name, justify="right")
    for record, spending in spent:
        numbers = (f"{value:.3g}" for value in (spending.before, spending.after, spending.limit))
        table.add_row(Text(record.title), Text(spending.metric), *numbers)
    yield table


def _size_cells(size: Size) -> tuple[str, str, str, str]:
    flops = "unknown" if size.flops is None else scaled(size.flops)
    return f"{size.nodes:,}", f"{size.parameters:,}", scaled(size.bytes) + "B", flops


def scaled(number: int) -> str:
    """Four digits and a decimal prefix: 12345678 is "12.35 M"."""
    value, prefixes = float(number), ["", "k", "M", "G", "T", "P"]
    while value >= 1000 and len(prefixes) > 1:
        value /= 1000
        del prefixes[0]
    return f"{value:.2f} {prefixes[0]}" if prefixes[0] else f"{number} "


def _notes(report: Report) -> Iterator[Text]:
    lines = [line for record in report.passes for line in _pass_notes(record)] + list(report.notes)
    if lines:
        yield Text("\n".join(lines))


def _pass_notes(record: PassRecord) -> Iterator[str]:
    undone = [a for a in record.applications if a.status == "undone"]
    yield from (_undone_line(a) for a in undone[:UNDONE_SHOWN])
    if len(undone) > UNDONE_SHOWN:
        yield f"undone: {len(undone) - UNDONE_SHOWN} more of {record.name}"
    yield from record.why_not(REASONS_SHOWN)
    yield from (f"{record.title}: {note}" for note in record.notes)


def _undone_line(application: Application) -> str:
    repro = f" (reproduce: {application.repro})" if application.repro else ""
    return f"undone: {application.id} at {', '.join(application.nodes)}: {application.reason}{repro}"

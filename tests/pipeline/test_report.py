"""The report: coverage, JSON, round trip and what it shows."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace

import pytest

from graphopt.pipeline.report import Application, Evidence, PassRecord, Report, RuleStats, Size, worst_of
from graphopt.rewrite.contract import Proof


def application(number: int, status: str = "kept", kind: str = "executed", **evidence: object) -> Application:
    return Application(
        f"fuse-conv-bn/conv-batch-norm#{number}",
        "conv-batch-norm",
        (f"conv_{number}", f"bn_{number}"),
        status,
        "" if status == "kept" else "worse than allowed",
        Evidence(kind, **evidence),  # type: ignore[arg-type]
    )


def sample() -> Report:
    stats = RuleStats(
        tried=20,
        matched=4,
        applied=3,
        undone=1,
        refused=Counter({"bn is in training mode": 2, "conv has other users": 3, "a reason": 2}),
        seconds=0.25,
    )
    record = PassRecord(
        "fuse-conv-bn{relu=true}",
        Size(120, 4_000_000, 16_000_000, 3_600_000_000),
        Size(117, 3_999_000, 15_996_000, None),
        {"conv-batch-norm": stats},
        [
            application(1, inputs=6, worst=0.25, twin=1e-15),
            application(2, "undone", inputs=6, worst=math.inf, twin=math.nan, notes=("seed 3",)),
            application(3, kind="bit-equal", inputs=6),
            application(4, kind="none"),
        ],
        1.5,
        ["a note"],
    )
    quiet = PassRecord("clean-up", record.after, record.after, {}, [], 0.5)
    return Report(
        "model.onnx", "fuse-conv-bn{relu=true},clean-up", "match", [record, quiet], 2.0, ["all well"]
    )


def test_coverage_is_the_share_of_kept_applications_with_evidence():
    assert sample().coverage() == pytest.approx(2 / 3)
    assert Report("m", "", "off").coverage() == 1.0


def test_applications_by_status():
    report = sample()
    assert [a.id[-1] for a in report.kept] == ["1", "3", "4"]
    assert [a.id[-1] for a in report.undone] == ["2"]
    assert len(report.applications) == 4


def test_worst_is_over_what_was_kept_and_lets_no_nan_pass():
    assert sample().worst() == 0.25
    assert math.isnan(
        worst_of([application(1, worst=0.5), application(2, worst=math.nan), application(3, worst=0.9)])
    )
    assert worst_of([]) == 0.0


def test_why_not_counts_reasons_commonest_first_and_ties_by_name():
    assert sample().why_not() == [
        "7 conv-batch-norm refused: conv has other users (3), a reason (2), bn is in training mode (2)"
    ]


def test_only_the_commonest_reasons_are_shown_and_the_others_counted():
    (record, _) = sample().passes
    assert record.why_not(1) == ["7 conv-batch-norm refused: conv has other users (3), 2 other reasons (4)"]
    record.rules["conv-batch-norm"].refused = Counter({f"value {i} has other users": 1 for i in range(50)})
    assert len([line for line in str(sample()).splitlines() if "refused:" in line]) == 1
    report = Report("m", "", "match", [record])
    assert "47 other reasons (47)" in str(report) and "value 49" not in str(report)
    assert "value 49 has other users" in report.to_json()


def test_dict_is_read_back_as_the_same_report():
    report = sample()
    data = json.loads(report.to_json(times=True))
    again = Report.from_dict(data)
    assert again.to_dict() == report.to_dict() == data
    undone = again.undone[0].evidence
    assert math.isinf(undone.worst) and undone.twin is not None and math.isnan(undone.twin)
    assert undone.notes == ("seed 3",)
    assert again.kept == report.kept
    assert again.passes[0].rules == report.passes[0].rules
    assert isinstance(again.passes[0].rules["conv-batch-norm"].refused, Counter)
    assert (again.passes[0].before, again.passes[0].after) == (
        report.passes[0].before,
        report.passes[0].after,
    )
    assert (again.seconds, again.passes[0].seconds) == (2.0, 1.5)


def test_json_without_times_does_not_depend_on_them_nor_on_the_order_of_counting():
    report, slower = sample(), sample()
    slower.seconds = slower.passes[0].seconds = slower.passes[0].rules["conv-batch-norm"].seconds = 99.0
    counted = slower.passes[0].rules["conv-batch-norm"].refused
    slower.passes[0].rules["conv-batch-norm"].refused = Counter(dict(reversed(counted.items())))
    assert report.to_json() == slower.to_json()
    assert report.to_json(times=True) != slower.to_json(times=True)
    assert "seconds" not in report.to_json()


def test_json_has_no_nan_and_sorted_keys():
    text = sample().to_json()
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert list(data) == sorted(data)
    assert Report.from_dict(data).seconds == 0.0


def test_the_data_of_a_report_is_a_copy():
    report = sample()
    report.to_dict()["passes"][0]["before"]["nodes"] = 0
    report.to_dict()["passes"][0]["rules"]["conv-batch-norm"]["tried"] = 0
    assert report.passes[0].before.nodes == 120
    assert report.passes[0].rules["conv-batch-norm"].tried == 20


def test_the_table_shows_rules_sizes_undone_and_refusals():
    text = str(sample())
    lines = text.splitlines()
    assert lines[0] == "model.onnx: fuse-conv-bn{relu=true},clean-up"
    assert lines[1] == "3 applications kept, 67 % with evidence (verify=match), 1 undone, 2.00 s"
    (row,) = [line for line in lines if "conv-batch-norm " in line and line.startswith("fuse-conv-bn")]
    assert row.split() == ["fuse-conv-bn", "conv-batch-norm", "20", "4", "3", "1", "7", "0.25", "0.25"]
    assert any(line.split() == ["before", "120", "4,000,000", "16.00", "MB", "3.60", "G"] for line in lines)
    assert any(line.split()[:3] == ["after", "fuse-conv-bn", "117"] and "unknown" in line for line in lines)
    assert "undone: fuse-conv-bn/conv-batch-norm#2 at conv_2, bn_2: worse than allowed" in text
    assert "7 conv-batch-norm refused: conv has other users (3)" in text
    assert "fuse-conv-bn: a note" in text and "all well" in text
    assert not any(line.endswith(" ") for line in lines)


def test_names_with_markup_characters_are_shown_as_they_are():
    report = sample()
    report.model = "[bold]x[/bold].onnx"
    report.passes[0].rules = {"[red]rule": RuleStats(tried=1)}
    assert "[bold]x[/bold].onnx" in str(report)
    assert "[red]rule" in str(report)


def test_only_a_few_undone_applications_are_named():
    report = sample()
    report.passes[0].applications = [application(i, "undone") for i in range(9)]
    text = str(report)
    assert text.count("undone: fuse-conv-bn/conv-batch-norm#") == 5
    assert "undone: 4 more of fuse-conv-bn" in text


def test_with_proofs_the_table_has_how_many_of_what_was_kept_are_settled():
    report = sample()
    record = report.passes[0]
    proofs = [Proof("proof", seed=1), None, Proof("undecided", "sizes differ"), None]
    record.applications = [
        a._replace(evidence=replace(a.evidence, proof=p)) for a, p in zip(record.applications, proofs, strict=True)
    ]
    record.applications.append(application(5, kind="construction"))
    text = str(report)
    assert "50 % proved" in text  # one by algebra and one by construction, of four
    header, row = (next(line for line in text.splitlines() if word in line) for word in ("tried", "conv-batch-norm"))
    end = header.index("proved") + len("proved")
    assert row[:end].split()[-1] == "2"
    assert "proved" not in str(sample())
    again = Report.from_dict(report.to_dict())
    assert [a.evidence.proof for a in again.kept] == [a.evidence.proof for a in report.kept]


@pytest.mark.parametrize(("without", "shown"), [(0, "100 %"), (1, "99 %"), (100, "67 %"), (299, "1 %"), (300, "0 %")])
def test_all_is_only_said_of_all(without: int, shown: str):
    kinds = ["none"] * without + ["executed"] * (300 - without)
    record = sample().passes[0]
    record.applications = [application(i, kind=kind) for i, kind in enumerate(kinds)]
    assert f"300 applications kept, {shown} with evidence" in str(Report("m", "p", "match", [record]))


def test_what_was_skipped_is_counted():
    assert "skipped" not in str(sample())
    record = sample().passes[0]
    record.applications = [application(1), application(2, "skipped")]
    assert "1 application kept, 100 % with evidence (verify=match), 0 undone, 1 skipped, " in str(
        Report("m", "p", "match", [record])
    )


def test_an_empty_report_prints():
    assert "nothing applied" in str(Report("m", "", "match"))

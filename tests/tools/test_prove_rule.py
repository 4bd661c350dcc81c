"""`graphopt prove-rule`: a rule from a module or of a pass, its proof, and the exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from graphopt.tools.main import app, main

RULES = """
from graphopt import Exact, rule

@rule(contract=Exact())
class Right:
    def pattern(self, op, x):
        return op.neg(op.neg(x))

    def rewrite(self, m, build):
        return m.x

@rule(contract=Exact())
class Wrong:
    def pattern(self, op, x):
        return op.relu(op.neg(x))

    def rewrite(self, m, build):
        return m.x
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "rules_of_a_stranger.py").write_text(RULES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "rules_of_a_stranger", raising=False)
    return "rules_of_a_stranger"


def asked(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["prove-rule", *arguments])


def test_a_right_rule_is_proved_from_the_current_folder(module: str) -> None:
    result = asked(f"{module}:Right")
    assert result.exit_code == 0
    first, claim = result.stdout.splitlines()
    assert first == f"{module}:Right (exact): proof for all weights, on 8 graphs made from its pattern"
    assert claim.startswith("Equal as expressions of real numbers") and "says nothing of rounding" in claim


def test_a_wrong_rule_is_not_and_says_where_the_sides_differ(module: str) -> None:
    result = asked(f"{module}:Wrong")
    assert result.exit_code == 1
    assert "not proved" in result.stdout and "elements differ" in result.stdout


def test_the_json_has_the_documented_keys(module: str) -> None:
    data = json.loads(asked(f"{module}:Right", "--seed", "7", "--json").stdout)
    assert set(data) == {
        "rule", "contract", "claim", "for_all_weights", "level", "weights", "functions", "laws", "log2_error",
        "graphs", "reason", "seed",
    }  # fmt: skip
    assert data["seed"] == 7 and data["for_all_weights"] and data["claim"] == "proof for all weights"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rules_of_a_stranger:Rihgt", "has no rule 'Rihgt'"),
        ("no_such_module:Right", "the module 'no_such_module' cannot be imported"),
        ("clean-up/no-such-rule", "unknown rule"),
        ("broken_module:Right", "cannot be imported: SyntaxError"),
        (":Right", "cannot be imported: ValueError"),
    ],
)
def test_a_rule_that_is_not_there_is_one_line(
    module: str, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken_module.py").write_text("def :", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["prove-rule", name])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_the_page_of_a_pass_says_what_is_proved_of_each_rule() -> None:
    data = json.loads(CliRunner().invoke(app, ["passes", "clean-up", "--json"]).stdout)
    proofs = {rule["name"]: rule["proof"] for rule in data["rules"]}
    assert proofs["transpose-twice"]["for_all_weights"] and proofs["transpose-twice"]["graphs"] == 8
    assert not proofs["multiply-by-one"]["for_all_weights"]
    assert proofs["multiply-by-one"]["text"].startswith("proof for ")

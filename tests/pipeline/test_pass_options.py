"""Passes as frozen dataclasses: options from text, back to text, and their description."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import PipelineError
from graphopt.pipeline.pass_ import GraphPass, Pass, RulePass, describe, instantiate, pass_to_spec
from graphopt.pipeline.spec import PassSpec, parse_pipeline


@dataclass(frozen=True)
class LowRank(GraphPass):
    """Replaces a linear layer by two thinner ones.

    Source: Eckart and Young, 1936.
    """

    name: ClassVar[str] = "low-rank"
    requires: ClassVar[tuple[str, ...]] = ("inference-mode",)
    ensures: ClassVar[tuple[str, ...]] = ("no-dropout",)
    contract: ClassVar[str] = "approximate within the user's budget"

    energy: float = 0.99
    "Share of the squared singular values that is kept."
    max_rank: int | None = None
    """Largest rank,
    or none."""
    layers: tuple[str, ...] = ()
    method: Literal["svd", "randomised"] = "svd"
    exact_only: bool = False
    label: str = field(default="", metadata={"doc": "Shown in the report."})
    window: tuple[int, float] = (1, 0.5)
    step: int | float = 1

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1:
            raise ValueError(f"energy must be in (0, 1], got {self.energy}")

    def run(self, context: Any) -> None:
        raise AssertionError("options are read without running the pass")


@dataclass(frozen=True)
class Required(RulePass):
    name: ClassVar[str] = "required"
    target: str

    def rules(self) -> Sequence[Any]:
        return ()


class Table(dict):
    def get(self, name):
        return self[name]


PASSES = Table({"low-rank": LowRank, "required": Required})


def make(text: str) -> Pass:
    (spec,) = parse_pipeline(text)
    return instantiate(spec, PASSES)


def test_options_are_read_by_their_types():
    text = 'energy=0.5 max-rank=8 layers=a,b method=randomised exact-only label="x, y" window=3,2.5 step=0.25'
    expected = LowRank(0.5, 8, ("a", "b"), "randomised", True, "x, y", (3, 2.5), 0.25)
    assert make(f"low-rank{{{text}}}") == expected


def test_absent_options_have_their_defaults():
    assert make("low-rank") == LowRank()


def test_none_flags_and_short_tuples():
    assert make("low-rank{max-rank=none exact-only=false layers=one}") == LowRank(layers=("one",))
    assert make("low-rank{layers=()}").layers == ()
    assert type(make("low-rank{step=3}").step) is int


options = st.fixed_dictionaries(
    {},
    optional={
        "energy": st.floats(1e-9, 1.0),
        "max_rank": st.none() | st.integers(),
        "layers": st.lists(st.text(max_size=5), max_size=3).map(tuple),
        "method": st.sampled_from(["svd", "randomised"]),
        "exact_only": st.booleans(),
        "label": st.text(max_size=8),
        "window": st.tuples(st.integers(), st.floats(allow_nan=False)),
        "step": st.integers() | st.floats(allow_nan=False),
    },
)


@given(options)
def test_a_pass_is_read_back_from_its_own_text(values):
    pass_ = LowRank(**values)
    assert make(str(pass_)) == pass_


def test_text_of_a_pass_has_only_options_that_are_not_default():
    assert str(LowRank()) == "low-rank"
    assert str(LowRank(max_rank=4, exact_only=True)) == "low-rank{max-rank=4 exact-only=true}"
    assert pass_to_spec(Required("x")) == PassSpec("required", {"target": "x"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "low-rank{energi=1}",
            r"'low-rank': unknown option 'energi' \(did you mean 'energy'\?\); it takes energy",
        ),
        ("low-rank{max_rank=1}", "unknown option 'max_rank' .*did you mean 'max-rank'"),
        ("low-rank{energy=much}", "'low-rank', option 'energy': expected float, got 'much'"),
        ("low-rank{energy=nan}", "expected float, got 'nan'"),
        ("low-rank{energy}", "option 'energy': expected float, got the option without a value"),
        ("low-rank{max-rank=1.5}", "expected int or none, got '1.5'"),
        ("low-rank{max-rank=1,2}", "expected int or none, got '1,2'"),
        ("low-rank{method=qr}", "expected one of svd, randomised, got 'qr'"),
        ("low-rank{exact-only=maybe}", "expected bool, got 'maybe'"),
        ("low-rank{label=a,b}", "expected str in quotes"),
        ("low-rank{layers}", "expected tuple of str"),
        ("low-rank{window=1}", r"expected tuple of \(int, float\), got '1'"),
        ("low-rank{window=a,2}", "expected int"),
        ("low-rank{energy=2}", r"pass 'low-rank': energy must be in \(0, 1\], got 2"),
        ("required", "pass 'required': option 'target' must be given; it takes target"),
    ],
)
def test_bad_options_say_pass_option_expected_and_got(text, message):
    with pytest.raises(PipelineError, match=message):
        make(text)


@dataclass(frozen=True)
class Shares(GraphPass):
    name: ClassVar[str] = "shares"
    share: float = 0.5
    more: tuple[float, ...] = ()

    def run(self, context: Any) -> None: ...


def test_a_value_that_text_cannot_say_is_refused_and_not_changed():
    @dataclass(frozen=True)
    class Named(GraphPass):
        name: ClassVar[str] = "named"
        title: str | None = "x"
        size: int = 0

        def run(self, context: Any) -> None: ...

    assert str(Named(None)) == "named{title=none}"
    assert str(Shares(1, (1, 0.5))) == "shares{share=1 more=1,0.5}"
    with pytest.raises(PipelineError, match="'shares', option 'more': expected tuple of float, got \\[1\\]"):
        pass_to_spec(Shares(more=[1]))  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match="'named', option 'title': 'none' cannot be written"):
        pass_to_spec(Named("none"))
    with pytest.raises(PipelineError, match="'named', option 'size': expected int, got 1.5"):
        pass_to_spec(Named(size=1.5))  # type: ignore[arg-type]


def test_passes_are_frozen():
    with pytest.raises(FrozenInstanceError):
        LowRank().energy = 0.1  # type: ignore[misc]


def test_a_pass_with_options_that_is_no_dataclass_is_refused():
    class Forgotten(GraphPass):
        name: ClassVar[str] = "forgotten"
        strength: int = 3

        def run(self, context: Any) -> None: ...

    with pytest.raises(PipelineError, match="Forgotten has the option 'strength' but is no dataclass"):
        instantiate(PassSpec("forgotten"), Table(forgotten=Forgotten))


def test_a_pass_without_options_needs_no_decorator():
    class Plain(GraphPass):
        name: ClassVar[str] = "plain"

        def run(self, context: Any) -> None: ...

    assert isinstance(instantiate(PassSpec("plain"), Table(plain=Plain)), Plain)
    with pytest.raises(PipelineError, match="unknown option 'x'; it takes no options"):
        instantiate(PassSpec("plain", {"x": "1"}), Table(plain=Plain))


def test_unsupported_types_of_options_are_named():
    @dataclass(frozen=True)
    class Odd(GraphPass):
        name: ClassVar[str] = "odd"
        table: dict[str, int] = field(default_factory=dict)

        def run(self, context: Any) -> None: ...

    with pytest.raises(PipelineError, match="options of type dict.* are not supported"):
        instantiate(PassSpec("odd", {"table": "x"}), Table(odd=Odd))


def test_what_is_not_a_pass_is_refused():
    with pytest.raises(PipelineError, match="'thing' is not a pass: expected a subclass of Pass"):
        instantiate(PassSpec("thing"), Table(thing=print))


def test_description_has_docs_types_and_defaults():
    described = describe(LowRank)
    assert json.loads(json.dumps(described)) == described
    assert described["name"] == "low-rank" and described["kind"] == "graph"
    assert described["doc"].endswith("Source: Eckart and Young, 1936.")
    assert described["contract"] == "approximate within the user's budget"
    assert (described["requires"], described["ensures"]) == (["inference-mode"], ["no-dropout"])
    by_name = {o["name"]: o for o in described["options"]}
    assert by_name["energy"] == {
        "name": "energy",
        "type": "float",
        "default": "0.99",
        "doc": "Share of the squared singular values that is kept.",
    }
    assert by_name["max-rank"]["doc"] == "Largest rank,\nor none."
    assert by_name["label"] == {
        "name": "label",
        "type": "str",
        "default": '""',
        "doc": "Shown in the report.",
    }
    assert by_name["layers"]["default"] == "()" and by_name["layers"]["doc"] == ""
    assert by_name["window"]["default"] == "1,0.5"


def test_description_of_a_required_option_and_of_a_class_without_docstring():
    described = describe(Required)
    assert described["doc"] == ""
    assert described["kind"] == "rules"
    assert described["options"] == [{"name": "target", "type": "str", "default": None, "doc": ""}]


def test_option_docs_are_inherited():
    @dataclass(frozen=True)
    class Narrow(LowRank):
        name: ClassVar[str] = "narrow"
        margin: float = 0.0
        "Extra columns."

    docs = {o["name"]: o["doc"] for o in describe(Narrow)["options"]}
    assert docs["energy"] == "Share of the squared singular values that is kept."
    assert docs["margin"] == "Extra columns."


def test_description_without_source_falls_back_to_nothing():
    source = (
        "@dataclass(frozen=True)\nclass Typed(GraphPass):\n    name: ClassVar[str] = 'typed'\n"
        "    size: int = 1\n    'doc'\n    def run(self, context): pass\n"
    )
    namespace: dict[str, Any] = {"GraphPass": GraphPass, "dataclass": dataclass, "ClassVar": ClassVar}
    namespace["__name__"] = "__main__"
    exec(compile(source, "<typed into an interpreter>", "exec", dont_inherit=True), namespace)
    (option,) = describe(namespace["Typed"])["options"]
    assert option == {"name": "size", "type": "int", "default": "1", "doc": ""}

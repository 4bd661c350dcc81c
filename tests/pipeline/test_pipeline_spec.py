"""The pipeline grammar: what it reads, what it writes, and what it says about mistakes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import PipelineError
from graphopt.pipeline.spec import PassSpec, PipelineSyntaxError, parse_pipeline, pipeline_text

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,8}", fullmatch=True)
texts = st.text(max_size=12) | st.sampled_from(
    ["()", "", '"', "\\", 'a\\"b', "a,b", "a b", "{}", "=", "none"]
)
values = st.just(True) | texts | st.lists(texts, max_size=4).map(tuple)
specs = st.builds(PassSpec, names, st.dictionaries(names, values, max_size=4))


@given(st.lists(specs, max_size=5))
def test_text_of_specs_is_read_back_as_the_same_specs(pipeline):
    text = pipeline_text(pipeline)
    again = parse_pipeline(text)
    assert again == pipeline
    assert [list(s.options) for s in again] == [list(s.options) for s in pipeline]
    assert pipeline_text(again) == text


@given(st.text(alphabet='ab-,{}="\\ ()\n', max_size=30))
def test_any_text_is_read_or_refused_with_a_position_inside_it(text):
    try:
        specs = parse_pipeline(text)
    except PipelineSyntaxError as error:
        assert 0 <= error.position <= len(text)
    else:
        assert parse_pipeline(pipeline_text(specs)) == specs


def test_reads_the_example_of_the_documentation():
    assert parse_pipeline("fuse-conv-bn,low-rank{energy=0.99 layers=a,b},hoist") == [
        PassSpec("fuse-conv-bn"),
        PassSpec("low-rank", {"energy": "0.99", "layers": ("a", "b")}),
        PassSpec("hoist"),
    ]


def test_blanks_and_line_breaks_are_free_between_passes_and_options():
    text = " a ,\n b{ x=1\t y }\n, c {} "
    assert pipeline_text(parse_pipeline(text)) == "a,b{x=1 y},c"


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_empty_text_is_an_empty_pipeline(text):
    assert parse_pipeline(text) == []


def test_quotes_hold_anything_and_are_written_only_where_needed():
    (spec,) = parse_pipeline(r'a{x="with, blank {and} \"quote\" \\" y="plain" z=()}')
    assert spec.options == {"x": 'with, blank {and} "quote" \\', "y": "plain", "z": ()}
    assert str(spec) == r'a{x="with, blank {and} \"quote\" \\" y=plain z=()}'


def test_a_quoted_pair_of_parentheses_is_a_text_and_not_the_empty_tuple():
    (spec,) = parse_pipeline('a{x="()"}')
    assert spec.options == {"x": "()"}
    assert parse_pipeline(str(spec)) == [spec]


@pytest.mark.parametrize(
    ("text", "position", "expected", "got"),
    [
        ("a,", 2, "the name of a pass", "the end"),
        (",a", 0, "the name of a pass", "','"),
        ("a,,b", 2, "the name of a pass", "','"),
        ("a b", 2, "'{', ',' or the end", "'b'"),
        ("a{b}}", 4, "',' or the end", "'}'"),
        ("a{", 2, "an option or '}'", "the end"),
        ("a{=1}", 2, "an option or '}'", "'='"),
        ("a{x=}", 4, "a value", "'}'"),
        ("a{x= 1}", 4, "a value", "' '"),
        ("a{x=1,}", 6, "a value", "'}'"),
        ("a{x=1, y}", 6, "a value", "' '"),
        ("a{x=1 x=2}", 6, "an option not given before", "'x'"),
        ("a{x=1{", 5, "a blank or '}'", "'{'"),
        ("a{x,y}", 3, "'=', a blank or '}'", "','"),
    ],
)
def test_mistakes_are_located_and_explained(text, position, expected, got):
    with pytest.raises(PipelineSyntaxError) as caught:
        parse_pipeline(text)
    assert (caught.value.position, caught.value.expected, caught.value.got) == (position, expected, got)
    message = str(caught.value)
    assert f"position {position}: expected {expected}, got {got}" in message
    line, caret = message.splitlines()[1:]
    assert line[caret.index("^") :] == text[position:]


def test_the_caret_stands_under_the_mistake_in_a_text_of_several_lines():
    with pytest.raises(PipelineError) as caught:
        parse_pipeline("first,\nsecond{x=1 x=2},\nthird")
    assert str(caught.value).splitlines()[1:] == ["  second{x=1 x=2},", "             ^"]


@pytest.mark.parametrize("text", ['a{x="', 'a{x="b', 'a{x="b\\"', r'a{x="\n"}'])
def test_an_unfinished_quote_or_an_unknown_escape_is_refused_at_the_quote(text):
    with pytest.raises(PipelineSyntaxError, match="closing") as caught:
        parse_pipeline(text)
    assert caught.value.position == 4


@pytest.mark.parametrize("name", ["", "a b", "a,b", "-a", "a{", "ä"])
def test_a_name_that_the_grammar_cannot_say_is_refused_when_the_spec_is_made(name):
    with pytest.raises(PipelineError, match="cannot be written"):
        PassSpec(name)
    with pytest.raises(PipelineError, match="cannot be written"):
        PassSpec("a", {name: "1"})

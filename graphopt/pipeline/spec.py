"""The text of a pipeline, in MLIR's grammar, and back.

    pipeline := [pass ("," pass)*]
    pass     := name ["{" option* "}"]
    option   := key ["=" value]                      options are separated by blanks
    value    := "()" | element ("," element)*        a comma makes a tuple, "()" is the empty one
    element  := bare | quoted                        quoted: "..." may hold anything; escapes \\" and \\\\

For example `fuse-conv-bn,low-rank{energy=0.99 layers=a,b},hoist`. A key alone means true. What a value means
(number, flag, choice) is decided by the types of the pass's options, see `options.py`; here all is text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from graphopt.errors import PipelineError

OptionValue: TypeAlias = Literal[True] | str | tuple[str, ...]
"""True for a key alone, the text of a single value, or the texts of none or of several."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_BARE = re.compile(r'[^\s,{}="]+')
_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"', re.DOTALL)
_BLANK = re.compile(r"\s*")
_EMPTY = "()"


def is_name(text: str) -> bool:
    """Whether a pass or an option can be called so."""
    return _NAME.fullmatch(text) is not None


class PipelineSyntaxError(PipelineError):
    """The text of a pipeline does not follow the grammar.

    Attributes:
        text: the whole pipeline text.
        position: offset in `text` at which it stops making sense.
        expected, got: what the grammar allows there, and what stands there.
    """

    def __init__(self, text: str, position: int, expected: str, got: str) -> None:
        self.text, self.position, self.expected, self.got = text, position, expected, got
        start = text.rfind("\n", 0, position) + 1
        line = text[start:].split("\n", 1)[0].replace("\t", " ")
        caret = " " * (position - start) + "^"
        super().__init__(
            f"pipeline text, position {position}: expected {expected}, got {got}\n  {line}\n  {caret}"
        )


DEFAULT_PASSES = "clean-up,fuse-conv-bn,clean-up"
"""What is run where no passes are named. Equal nodes are merged first: a convolution that two equal nodes read has two
users, and is not fused."""


@dataclass(frozen=True)
class PassSpec:
    """One pass of a pipeline as text: its name and its options, not yet typed."""

    name: str
    """Command-line name of the pass."""
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    """Option key (with dashes) to value. A tuple of one text becomes the text: both are written alike."""

    def __post_init__(self) -> None:
        for name in (self.name, *self.options):
            if not is_name(name):
                raise PipelineError(
                    f"{name!r} cannot be written in a pipeline: expected letters, digits, '_', '-' and '.'"
                )
        options = {key: _single(value) for key, value in self.options.items()}
        object.__setattr__(self, "options", options)

    def __str__(self) -> str:
        options = " ".join(_option_text(key, value) for key, value in self.options.items())
        return f"{self.name}{{{options}}}" if options else self.name


def parse_pipeline(text: str) -> list[PassSpec]:
    """The passes that `text` names, in order; an empty text has none.

    Raises:
        PipelineSyntaxError: with the position, what was expected there and what was found.
    """
    parser = _Parser(text)
    parser.blanks()
    specs: list[PassSpec] = []
    while specs or not parser.at_end():
        specs.append(parser.pass_spec())
        parser.blanks()
        if parser.at_end():
            break
        if not parser.take(","):
            raise parser.error("',' or the end" if specs[-1].options else "'{', ',' or the end")
        parser.blanks()
    return specs


def pipeline_text(specs: Sequence[PassSpec]) -> str:
    """The text that `parse_pipeline` reads back as `specs`."""
    return ",".join(str(spec) for spec in specs)


class _Parser:
    """A cursor over the text of a pipeline."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def pass_spec(self) -> PassSpec:
        name = self.match(_NAME, "the name of a pass")
        self.blanks()
        return PassSpec(name, self.options() if self.take("{") else {})

    def options(self) -> dict[str, OptionValue]:
        options: dict[str, OptionValue] = {}
        self.blanks()
        while not self.take("}"):
            start = self.position
            key = self.match(_NAME, "an option or '}'")
            if key in options:
                self.position = start
                raise self.error("an option not given before", repr(key))
            options[key] = self.value() if self.take("=") else True
            if not self.blanks() and not self.peek("}"):
                raise self.error("a blank or '}'" if options[key] is not True else "'=', a blank or '}'")
        return options

    def value(self) -> OptionValue:
        bare = _BARE.match(self.text, self.position)
        if bare and bare[0] == _EMPTY:
            self.position = bare.end()
            return ()
        elements = [self.element()]
        while self.take(","):
            elements.append(self.element())
        return elements[0] if len(elements) == 1 else tuple(elements)

    def element(self) -> str:
        if not self.peek('"'):
            return self.match(_BARE, "a value")
        quoted = self.match(_QUOTED, "text up to a closing '\"' (inside it write \\\" and \\\\)")
        return re.sub(r"\\(.)", r"\1", quoted[1:-1], flags=re.DOTALL)

    def match(self, pattern: re.Pattern[str], expected: str) -> str:
        found = pattern.match(self.text, self.position)
        if found is None:
            raise self.error(expected)
        self.position = found.end()
        return found[0]

    def blanks(self) -> bool:
        """Skip blanks; whether there were any."""
        start = self.position
        self.match(_BLANK, "a blank")
        return self.position > start

    def peek(self, character: str) -> bool:
        return self.text.startswith(character, self.position)

    def take(self, character: str) -> bool:
        taken = self.peek(character)
        self.position += taken
        return taken

    def at_end(self) -> bool:
        return self.position == len(self.text)

    def error(self, expected: str, got: str | None = None) -> PipelineSyntaxError:
        found = "the end" if self.at_end() else repr(self.text[self.position])
        return PipelineSyntaxError(self.text, self.position, expected, got or found)


def _single(value: OptionValue) -> OptionValue:
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def value_text(value: str | tuple[str, ...]) -> str:
    """How a value is written behind "="."""
    if value == ():
        return _EMPTY
    return ",".join(_element_text(e) for e in (value if isinstance(value, tuple) else (value,)))


def _option_text(key: str, value: OptionValue) -> str:
    return key if value is True else f"{key}={value_text(value)}"


def _element_text(element: str) -> str:
    if _BARE.fullmatch(element) and element != _EMPTY:
        return element
    escaped = element.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'

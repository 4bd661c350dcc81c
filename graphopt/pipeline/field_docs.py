"""The documentation of dataclass fields: the string under a field, as read from the class's source."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap


def field_docs(owner: type) -> dict[str, str]:
    """Field name to the text under it: metadata "doc", else the string below the field in the class's source.

    Classes whose source is not at hand (typed into an interpreter) have the metadata only.
    """
    docs: dict[str, str] = {}
    for base in reversed(owner.__mro__[:-1]):
        docs |= _source_docs(base)
    if dataclasses.is_dataclass(owner):
        docs |= {f.name: str(f.metadata["doc"]) for f in dataclasses.fields(owner) if "doc" in f.metadata}
    return docs


def _source_docs(owner: type) -> dict[str, str]:
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    docs = {}
    for field, below in zip(body, body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = inspect.cleandoc(text)
    return docs

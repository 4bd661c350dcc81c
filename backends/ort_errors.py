"""What onnxruntime says when it refuses a model, in graphopt's words: which op, which node, what to do."""

from __future__ import annotations

import re

from graphopt.errors import GraphoptError, ModelError, UnsupportedError

_NO_KERNEL = re.compile(
    r"Could not find an implementation for (?P<op>\S+?)\((?P<version>-?\d+)\) node with name '(?P<node>.*)'"
)
_NO_SCHEMA = re.compile(
    r'In Node, \("(?P<node>[^"]*)", (?P<op>\w+), "(?P<domain>[^"]*)", -?\d+\).*No Op registered for', re.S
)
_NO_FUNCTION = re.compile(r"(?P<op>\S+)\(-?\d+\) is not a registered function/op")
_BAD_TYPE = re.compile(
    r"Type '(?P<type>[^']*)' of input parameter \((?P<input>.*?)\) of operator \((?P<op>.*?)\) in node "
    r"\((?P<node>.*)\) is invalid"
)  # fmt: skip
_NEW_OPSET = re.compile(r"support for domain (?P<domain>\S+) is till opset (?P<opset>\d+)")
_STATUS = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


def explain_refusal(error: Exception, providers: str) -> GraphoptError:
    """The error to raise when a session cannot be made because of `error`.

    Args:
        error: what onnxruntime raised.
        providers: the execution providers that were asked for, as text.
    """
    text = str(error)
    if found := _NO_KERNEL.search(text):
        return UnsupportedError(
            f"onnxruntime has no kernel for {found['op']} (opset version {found['version']}) at node "
            f"{found['node']!r} with its types on {providers}; cast its inputs to float32, convert the "
            f"model to an "
            "opset in which the op has one, or choose another provider or backend"
        )
    if found := _NO_SCHEMA.search(text):
        op = f"{found['domain'] or 'ai.onnx'}::{found['op']}"
        return UnsupportedError(
            f"onnxruntime does not know {op} (node {found['node']!r}) in the opset that the model imports; "
            "correct the model's opset, or register the library that holds the custom op"
        )
    if found := _NO_FUNCTION.search(text):
        return UnsupportedError(
            f"onnxruntime does not know {found['op'].replace(':', '::')}, and the model holds no function "
            f"of that name; "
            "replace the op, or register the library that holds it"
        )
    if found := _BAD_TYPE.search(text):
        return UnsupportedError(
            f"{found['op']} at node {found['node']!r} takes no {found['type']} as input {found['input']!r} "
            "in the opset that the model imports; convert the model to float32 or cast that input"
        )
    if found := _NEW_OPSET.search(text):
        return UnsupportedError(
            f"the model imports a newer opset of {found['domain']} than {found['opset']}, the newest that "
            f"this "
            "onnxruntime has; convert the model down or upgrade onnxruntime"
        )
    reason = _STATUS.sub("", text.strip()) or type(error).__name__
    return ModelError(f"onnxruntime cannot load the model: {reason}")

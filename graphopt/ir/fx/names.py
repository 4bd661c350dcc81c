"""Fresh qualified names for weights."""

from __future__ import annotations

from collections.abc import Iterable


class Names:
    """The names of the weights of a region. None is a module of another: "a.b" rules out "a" and "a.b.c"."""

    def __init__(self, names: Iterable[str]) -> None:
        self._taken: set[str] = set()
        self._modules: set[str] = set()
        for name in names:
            self._add(name)

    def _add(self, name: str) -> None:
        self._taken.add(name)
        self._modules.update(_modules_of(name))

    def fresh(self, wanted: str) -> str:
        """A name like `wanted` that is free, taken from now on."""
        name = "".join(c if c.isalnum() or c in "._" else "_" for c in wanted).strip(".")
        for module in _modules_of(name):
            if module in self._taken:
                name = f"{module}_{name[len(module) + 1 :].replace('.', '_')}"
                break
        found, count = name, 0
        while found in self._taken or found in self._modules:
            count += 1
            found = f"{name}_{count}"
        self._add(found)
        return found

    def constant(self, wanted: str) -> str:
        """As `fresh`, and a name that no node can have.

        torch names the nodes of a program anew whenever it traces it, and an exporter to ONNX takes the name of a
        weight for that of a value: what is called as a node that has gone would meet another node of that name.
        """
        return self.fresh(wanted if "." in wanted.strip(".") else f"constant.{wanted}")

    def release(self, name: str) -> None:
        self._taken.discard(name)


def _modules_of(name: str) -> list[str]:
    """ "a", "a.b" for "a.b.c"."""
    return [name[:i] for i, c in enumerate(name) if c == "."]

"""One planted bug, and where it is planted."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Mutant:
    """One planted bug: within `function` of `module`, the only `old` becomes `new`.

    Args:
        name: what the bug is, in a few words; no two have the same.
        module: its file, below `src/raftplug`.
        function: the qualified name of a function, method or class, such as "Driver._write"; "" is the whole module.
        old: text that stands once in `function`; as short as tells the place. "" changes nothing.
        new: what takes its place.
        faults: those that the bug is about; seeds with only these run before seeds that choose their own.
        tests: those that must fail on the mutated tree and pass without the bug, as pytest names them. They stand for
            the seeds that choose their own faults: for what needs sockets, threads or a real disk.
    """

    name: str
    module: str
    function: str
    old: str
    new: str
    faults: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()

    def plant(self, text: str) -> str:
        """The text of the module with the bug in it.

        Raises:
            LookupError: if the function or the text in it is not there exactly once.
        """
        if not self.old:
            return text
        start, end = _span(text, self.function)
        body = text[start:end]
        if body.count(self.old) != 1:
            raise LookupError(f"{self.name}: {self.old!r} stands {body.count(self.old)} times in {self.function!r}")
        return text[:start] + body.replace(self.old, self.new) + text[end:]


def _span(text: str, function: str) -> tuple[int, int]:
    """Where a function begins and ends, with its decorators."""
    if not function:
        return 0, len(text)
    found = _spans(text).get(function, [])
    if len(found) != 1:
        raise LookupError(f"{function!r} is defined {len(found)} times")
    return found[0]


@lru_cache(maxsize=64)
def _spans(text: str) -> dict[str, list[tuple[int, int]]]:
    """Of each qualified name, where it is defined; a name may be defined in two branches."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: dict[str, list[tuple[int, int]]] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                first = min([child.lineno, *(each.lineno for each in child.decorator_list)])
                span = (starts[first - 1], starts[child.end_lineno or first])
                found.setdefault(prefix + child.name, []).append(span)
                visit(child, f"{prefix}{child.name}.")
            else:
                visit(child, prefix)

    visit(ast.parse(text), "")
    return found

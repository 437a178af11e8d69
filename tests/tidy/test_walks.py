"""The walks in the README: each module they name exists, is reached from the ones before it, and the way is short."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = re.compile(r"`((?:[a-z_]+/)+[a-z_]+\.py)`")

WALKS = [
    ("One call, followed through the code", 12),
    ("One registration, followed through the code", 8),
]
"""Heading in the README, and how many modules the walk may name."""


def _walk(heading: str) -> list[str]:
    """The modules that the numbered steps below a heading name, each once, in order."""
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert section, f"README has no section '{heading}'"
    numbered = re.findall(r"^\d+\. (.*?)(?=^\d+\. |^\s*$|\Z)", section[1], re.MULTILINE | re.DOTALL)
    return list(dict.fromkeys(module for step in numbered for module in MODULE.findall(step)))


def _imports(module: str) -> set[str]:
    """The files of this repository that a module imports itself, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {path for name in names if (ROOT / (path := name.replace(".", "/") + ".py")).is_file()}


@pytest.mark.parametrize(("heading", "modules_max"), WALKS)
def test_each_module_of_a_walk_is_reached_from_the_ones_before_it(heading: str, modules_max: int) -> None:
    """An earlier module imports it. Where the way goes on in another process, it imports an earlier one: both meet at that module's
    store or log."""
    walk = _walk(heading)
    assert len(walk) >= 2, "the walk names its modules as `folder/module.py`, in numbered steps"
    assert [module for module in walk if not (ROOT / module).is_file()] == []
    assert len(walk) <= modules_max, walk
    imports = {module: _imports(module) for module in walk}
    unreached = [
        module
        for i, module in enumerate(walk[1:], start=1)
        if not any(module in imports[earlier] or earlier in imports[module] for earlier in walk[:i])
    ]
    assert unreached == []

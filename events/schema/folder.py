"""The folder `schemas/`: one generated `<topic>/<fact>.avsc` per fact, committed, compared with the classes by a test."""

from __future__ import annotations

import json
from pathlib import Path

from events.facts.topics import entries
from events.schema import derivation as avro

SCHEMA_FOLDER = Path(__file__).resolve().parents[2] / "schemas"


def write_folder(folder: Path = SCHEMA_FOLDER) -> list[Path]:
    """Writes today's schemas as `<topic>/<fact>.avsc` and returns the files that changed."""
    changed: list[Path] = []
    for entry in entries():
        path = folder / entry.topic / f"{entry.name}.avsc"
        text = json.dumps(avro.schema_of(entry.cls), indent=2, ensure_ascii=False) + "\n"
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            changed.append(path)
    return changed


def folder_drift(folder: Path = SCHEMA_FOLDER) -> list[str]:
    """Each difference between class and file, as a sentence."""
    drift: list[str] = []
    expected: set[Path] = set()
    for entry in entries():
        path = folder / entry.topic / f"{entry.name}.avsc"
        expected.add(path)
        if not path.exists():
            drift.append(f"{entry.topic}/{entry.name}.avsc is missing; run `modelmarket schemas generate`")
        elif json.loads(path.read_text()) != avro.schema_of(entry.cls):
            drift.append(f"{entry.topic}/{entry.name}.avsc differs from class {entry.name}; run `modelmarket schemas generate`")
    drift += [f"{p.relative_to(folder)} belongs to no fact" for p in sorted(folder.glob("*/*.avsc")) if p not in expected]
    return drift

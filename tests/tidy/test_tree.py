"""The tree itself: what the README and the rules say of it is true."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from events.facts.topics import TOPICS, entries
from events.process.settings import Settings
from events.schema import codec as wire
from events.schema.examples import undecodable_examples
from events.schema.folder import folder_drift

ROOT = Path(__file__).resolve().parent.parent.parent
ROOMS = ("events", "access", "lifecycle", "rating", "commands", "projections", "serving", "infra", "cli")
BANNED = {"utils", "util", "helpers", "helper", "common", "base", "manager", "service", "misc"}
DIALECT = {
    *("desk", "office", "flight", "flights", "passenger", "passengers", "parcel", "bury", "buried", "tariff", "tariffs"),
    *("voice", "bookkeeping", "aboard", "clerk", "follower", "landed"),
    *("lane", "lanes", "judge", "judges", "say", "said", "told", "beat", "places", "letters"),
}
"""Pictures that once stood for the field's words: command processor, batch, queued call, quarantine, current prices, publisher, partition,
validator, heartbeat, coordinates … Forbidden as a whole word of an identifier only: sentences may say any of them."""
FOLDER_MODULES_MAX = 15
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
PAGE_LINES_MAX = 60
"""One screen, and its decisions."""


def _tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def _modules(*rooms: str) -> list[Path]:
    return sorted(p for room in rooms for p in (ROOT / room).rglob("*.py"))


CODE = _modules(*ROOMS, "examples", "bench")


def test_every_room_is_placed_in_the_import_contract() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    placed = {room.strip() for layer in config["contracts"][0]["layers"] for room in layer.split("|")}
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")} - {"tests", "examples", "bench"}
    assert placed == packages == set(config["root_packages"])


def test_the_map_in_the_readme_is_the_tree() -> None:
    readme = (ROOT / "README.md").read_text()
    match = re.search(r"## The map\n+```\n(.*?)```", readme, re.DOTALL)
    assert match, "README has no map"
    mapped = {line.split()[0].rstrip("/") for line in match.group(1).splitlines() if line and not line.startswith(" ")}
    there = {p.relative_to(ROOT).parts[0] for p in _tracked()} - {".gitignore", ".gitattributes", ".ci"}
    assert mapped == there


def test_every_module_says_in_one_sentence_what_it_is() -> None:
    silent = [str(p.relative_to(ROOT)) for p in CODE if not (ast.get_docstring(ast.parse(p.read_text())) or "").strip()]
    assert silent == []


def test_no_module_has_a_name_without_meaning() -> None:
    assert [str(p.relative_to(ROOT)) for p in CODE if p.stem in BANNED] == []


def _identifiers(tree: ast.AST) -> set[str]:
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    names |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    return names | {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}


def _words(identifier: str) -> list[str]:
    """In lower case. `letters` is a word of its own only where they are not called dead."""
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", identifier).lower().replace("dead_letters", "deadletters")
    return words.split("_")


def test_identifiers_use_the_words_of_the_field() -> None:
    """Names of tests are sentences and may use any word."""
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in (*CODE, *_modules("tests"))
        for name in sorted({path.stem, *_identifiers(ast.parse(path.read_text()))})
        if not name.startswith("test_") and DIALECT & set(_words(name))
    ]
    assert found == []


def test_a_folder_holds_one_idea() -> None:
    modules = Counter(path.parent for path in (*CODE, *_modules("tests")) if path.name != "__init__.py")
    assert {str(folder.relative_to(ROOT)): n for folder, n in modules.items() if n > FOLDER_MODULES_MAX} == {}


def test_modules_and_functions_stay_short() -> None:
    long: list[str] = []
    for path in CODE:
        text = path.read_text()
        if text.count("\n") > MODULE_LINES_MAX:
            long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES_MAX:
                long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {(node.end_lineno or 0) - node.lineno + 1} lines")
    assert long == []


def test_only_the_settings_file_reads_the_environment() -> None:
    """`infra` builds the environment of the processes it starts; nothing else may look."""
    readers = [
        str(p.relative_to(ROOT))
        for p in _modules("events", "access", "lifecycle", "rating", "commands", "projections", "serving", "cli")
        if re.search(r"os\.getenv|os\.environ(?!\[\"TZ\"\] = )", p.read_text())
    ]
    assert readers == []


def test_every_setting_is_described_by_use() -> None:
    code = "\n".join(p.read_text() for p in CODE if p.name != "settings.py")
    own = (ROOT / "events" / "process" / "settings.py").read_text()
    unread = [
        name for name in Settings.model_fields if not re.search(rf"\b{name}\b", code) and len(re.findall(rf"self\.{name}\b", own)) == 0
    ]
    assert unread == []


def test_every_fact_has_schema_example_documentation_and_topic() -> None:
    assert folder_drift() == []
    assert undecodable_examples() == []
    for entry in entries():
        assert (entry.cls.__doc__ or "").strip(), entry.name
        assert entry.cls.__doc__ != entry.cls.__mro__[1].__doc__, f"{entry.name} only inherits its documentation"
        assert entry.topic in TOPICS


def test_examples_of_the_past_are_never_edited() -> None:
    """Each kept frame is still valid Avro of the schema beside it."""
    for path in ROOT.glob("schemas/*/examples/*.json"):
        kept = json.loads(path.read_text())
        schemas = wire.SchemaSet()
        schemas.by_id[7] = wire.Schema.of(7, "x", json.dumps(kept["schema"]))
        assert wire.Codec(schemas).decode_raw(bytes.fromhex(kept["frame"]))[0].name == path.name.split(".")[0]


def test_every_rule_stands_in_full_with_its_state_and_a_test_that_exists() -> None:
    text = (ROOT / "docs" / "rules.md").read_text()
    rules = dict(re.findall(r"^### (K\d+) [^\n]+\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    assert list(rules) == [f"K{n}" for n in range(1, 31)]
    for name, rule in rules.items():
        state = re.search(r"^(Built|Partly|Not built)[.:;, ]", rule, re.MULTILINE)
        assert state, f"{name} does not say whether it is built"
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", rule)
        assert len(named) == 1 or (state[1] != "Built" and not named), f"{name} names {len(named)} tests"
        for file, test in named:
            assert (ROOT / file).exists(), f"{name}: {file} is not there"
            assert f"def {test}(" in (ROOT / file).read_text(), f"{name}: {file} has no {test}"


def test_code_cites_rules_that_exist() -> None:
    known = set(re.findall(r"^### (K\d+) ", (ROOT / "docs" / "rules.md").read_text(), re.MULTILINE))
    cited = {(str(p.relative_to(ROOT)), k) for p in CODE for k in re.findall(r"\bK\d{1,2}\b", p.read_text())}
    assert {(where, k) for where, k in cited if k not in known} == set()


def test_every_room_has_a_readme_of_one_screen() -> None:
    pages = {room: ROOT / room / "README.md" for room in (*ROOMS, "tests", "bench")}
    assert [room for room, page in pages.items() if not page.is_file()] == []
    assert [room for room in ROOMS if pages[room].read_text().count("\n") > PAGE_LINES_MAX] == []


def test_no_document_cites_a_file_that_is_not_in_the_repository() -> None:
    cited = re.compile(rf"`((?:{'|'.join((*ROOMS, 'bench', 'examples', 'tests', 'schemas', 'docs'))})/[\w./-]+\.\w+)(?:::\w+)?`")
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in _tracked()
        if path.suffix in (".md", ".py")
        for name in cited.findall(path.read_text())
        if not (ROOT / name).exists()
    ]
    assert missing == []


def test_the_lock_is_hashes_only() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert "--index" not in lock
    pinned = [block for block in re.split(r"\n(?=[a-z0-9])", lock) if "==" in block]
    assert len(pinned) > 100
    assert [block.split()[0] for block in pinned if "--hash=sha256:" not in block] == []


@pytest.mark.parametrize("pattern", [r"/root/", r"/work/", r"/home/[a-z]", r"\bTODO\b|\bFIXME\b|\bXXX\b"])
def test_no_file_names_a_machine_or_unfinished_work(pattern: str) -> None:
    found: list[str] = []
    for path in _tracked():
        if path.name == "requirements.lock" or path == Path(__file__) or path.suffix in (".png", ".onnx"):
            continue
        text = path.read_text(errors="replace")
        found += [f"{path.relative_to(ROOT)}: {m.group(0)}" for m in re.finditer(pattern, text)]
    assert found == []


def test_nothing_large_is_kept_in_git() -> None:
    assert [str(p.relative_to(ROOT)) for p in _tracked() if p.stat().st_size > 2_000_000] == []


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()

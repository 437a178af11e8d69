"""One home per concept: a new meter and a new dimension of a key are written in one file each, and everything else knows them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
METER_FILES_MAX, DIMENSION_FILES_MAX = 2, 3

METER_EDITS = {
    "events/facts/meters.py": (
        "    cpu_us: ",
        '    pages_read: Annotated[Count, Reading("pages of a document", _PIECES_MAX)] = 0\n    cpu_us: ',
    ),
}
DIMENSION_EDITS = {
    "events/facts/accounts.py": ('    project: Dimension = ""', '    project: Dimension = ""\n    cost_centre: Dimension = ""')
}

PROGRAM = """
from typing import get_args

from access.keys import Keys
from access.principal import Principal
from commands.prices.requests import PriceRequest
from commands.tenants.requests import IssueKeyRequest
from events.facts.accounts import ApiKeyIssued, KeyDimensions
from events.facts.meters import METERS, Meter
from events.facts.usage import InvocationSettled
from events.schema.derivation import schema_of
from projections.catalog.documents import evolve
from projections.catalog.tables import API_KEYS
from projections.query_api import usage as usage_queries
from projections.usage.table import create_table, insert_for
from projections.usage.views import views
from rating.book import BookVersion, Price, PriceBook
from rating.statement import Bucket, rate

meter, dimension = "pages_read", "cost_centre"

# the fact and its schema
for name in (meter, dimension):
    assert name in InvocationSettled.model_fields, name
    assert name in {f["name"] for f in schema_of(InvocationSettled)["fields"]}, name
assert dimension in ApiKeyIssued.model_fields

# table, insert and views
import json
insert = insert_for(7, json.dumps(schema_of(InvocationSettled)))
daily = next(v for v in views("usage") if "VIEW metering_daily" in v)
for name in (meter, dimension):
    assert f"`{name}`" in create_table("usage"), name
    assert f"`{name}`" in insert.columns, name
assert "Meter: pages of a document" in create_table("usage")
assert f"AS {meter}" in daily

# queries
assert meter in usage_queries._SUMS
assert dimension in usage_queries.CALLER_DIMENSIONS and dimension not in usage_queries.OWNER_DIMENSIONS
assert f"AS {dimension}" in API_KEYS

# prices and rating
assert meter in get_args(Meter)
PriceRequest(model="*", meter=meter, amount_micros=5)
book = PriceBook([BookVersion(1, 0, {("*", meter): Price(5, 1)})])
lines = rate({Bucket("m", "1.0.0", "acme", 1): tuple(3 if m == meter else 0 for m in METERS)}, book)
assert [(line.meter, line.amount_per_micros, quantity) for line, quantity in lines.items()] == [(meter, 5, 3)]

# a key, from the request to the call and the documents
body = IssueKeyRequest(scopes=("invoke",), cost_centre="4711")
assert body.cost_centre == "4711"
issued = {
    "tenant": "t", "key_id": "k", "key_sha256": "ab" * 32, "user": "u", "scopes": ["invoke"], "by": "b", "occurred_at": 1,
    "labels": {}, "expires_at": None, **body.shared(KeyDimensions),
}
keys, digest = Keys(), bytes.fromhex("ab" * 32)
keys.issue(issued)
for known in (keys, Keys.load(b"".join(keys.dump()).splitlines())):
    principal = known.identify(digest, 0)
    assert isinstance(principal, Principal) and principal.dimensions[dimension] == "4711"
assert evolve("accounts", {}, "ApiKeyIssued", issued, 1)["keys"]["k"][dimension] == "4711"
print("known everywhere")
"""


def test_a_meter_is_added_in_two_files_at_most_and_a_dimension_of_a_key_in_three(tmp_path: Path) -> None:
    assert len(METER_EDITS) <= METER_FILES_MAX
    assert len(DIMENSION_EDITS) <= DIMENSION_FILES_MAX
    _copy_rooms(tmp_path)
    for file, (old, new) in (METER_EDITS | DIMENSION_EDITS).items():
        text = (tmp_path / file).read_text()
        assert text.count(old) == 1, file
        (tmp_path / file).write_text(text.replace(old, new))
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "known everywhere\n"), ran.stderr


def _copy_rooms(folder: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    for line in listed.stdout.splitlines():
        if line.startswith("tests/") or not (ROOT / line).is_file():
            continue
        (folder / line).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / line, folder / line)

"""A snapshot is of one moment; a file that is not exactly what was written is ignored, since the log has every fact (K5)."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from access.keys import Keys
from access.principal import Principal
from events.facts.accounts import KEY_DIMENSIONS
from events.log import snapshot as snapshots
from events.log.fold_runner import FoldRunner
from events.log.record import Coordinate
from events.log.snapshot import FORMAT, SnapshotBroken
from events.schema.codec import Codec, SchemaSet
from serving.gateway.routes import Routes
from tests.support.lifecycle_facts import body
from tests.support.todays_codec import settings_with_keys

HEAD = {"code": "routes-2", "log_id": "log", "position": 7}
AT = Coordinate("accounts", 0, 0)


def issued(n: int, **more: Any) -> dict[str, Any]:
    who = {"tenant": f"t{n % 7}", "key_id": f"k{n}", "user": "u", "scopes": ["invoke"], "expires_at": None}
    return who | dict.fromkeys(KEY_DIMENSIONS, "") | {"key_sha256": digest(n).hex(), "labels": {"n": str(n)}} | more


def digest(n: int) -> bytes:
    return hashlib.sha256(b"%d" % n).digest()


def working(keys: Keys) -> set[int]:
    return {n for n in range(5000) if isinstance(keys.identify(digest(n), 0), Principal)}


def keys_of(state: bytes) -> Keys:
    routes = Routes()
    routes.load(state)
    return routes.keys


# --- the file


def test_a_snapshot_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.snapshot"
    snapshots.write(path, HEAD, [b"one\n", b"", b"two\n"])
    assert snapshots.read(path) == (HEAD, b"one\ntwo\n")


def test_a_torn_or_changed_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.snapshot"
    snapshots.write(path, HEAD, [b"state"])
    data = path.read_bytes()
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(SnapshotBroken):
            snapshots.read(path)
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(SnapshotBroken):
            snapshots.read(path)


def test_a_snapshot_that_could_not_be_finished_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "a.snapshot"
    snapshots.write(path, HEAD, [b"first"])

    def failing() -> Iterator[bytes]:
        yield b"second"
        raise OSError("the disk is full")

    with pytest.raises(OSError):
        snapshots.write(path, HEAD, failing())
    assert snapshots.read(path) == (HEAD, b"first")


def test_two_processes_of_one_machine_do_not_write_the_same_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.snapshot"
    snapshots.write(path, HEAD, [b"first"])
    with path.with_suffix(".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        snapshots.write(path, HEAD, [b"second"])
        assert snapshots.read(path) == (HEAD, b"first")
    snapshots.write(path, HEAD, [b"third"])
    assert snapshots.read(path) == (HEAD, b"third")


# --- the state


def test_a_snapshot_is_of_one_moment_however_slowly_it_is_written() -> None:
    routes = Routes()
    routes.apply("ModelRegistered", body("ModelRegistered", model="m", tenant="t"), AT)
    for n in range(2000):
        routes.apply("ApiKeyIssued", issued(n), AT)
    slices: list[bytes] = []
    for n, piece in enumerate(routes.dump()):
        slices.append(piece)
        routes.apply("ApiKeyRevoked", {"tenant": f"t{n % 7}", "key_id": f"k{n}"}, AT)
        routes.apply("ApiKeyIssued", issued(2000 + n), AT)
        routes.apply("ModelRegistered", body("ModelRegistered", model=f"m{n}", tenant="t"), AT)
    then = Routes()
    then.load(b"".join(slices))
    assert working(then.keys) == set(range(2000))
    assert set(then.models) == {"m"}
    now = keys_of(b"".join(routes.dump()))
    assert working(now) == set(range(len(slices), 2000 + len(slices)))


def test_another_snapshot_layout_has_another_code_version() -> None:
    """A key is unpacked when it is used: a key of another shape would pass the start and fail every call."""
    routes = Routes()
    history = ("ModelRegistered", "ModelVersionAdded", "ModelVersionSubmitted", "ModelVersionReviewed", "ModelVersionApproved")
    for position, name in enumerate((*history, "VersionDeployed", "VersionReady", "VersionFailed", "ModelRetired"), 1):
        routes.apply(name, {"position": position, **body(name)}, AT)
    routes.apply("ApiKeyIssued", issued(1), AT)
    routes.apply("TenantCreated", {"tenant": "t", "price_book": "standard", "currency": "CNY"}, AT)
    price = {"model": "m", "meter": "calls", "amount_micros": 5, "per_units": 1}
    book = {"book": "standard", "book_version": 1, "currency": "CNY", "effective_from": 1, "occurred_at": 1, "prices": [price]}
    routes.apply("PriceBookPublished", book, AT)
    seen = hashlib.sha256(b"".join(routes.dump())).hexdigest()
    assert (Routes.code_version.split()[0], seen[:16]) == ("routes-9", "5dcc7aac39097daf"), (
        "give Routes.code_version another number, then change this line"
    )


# --- which snapshots are taken


def restored(path: Path) -> tuple[FoldRunner, Routes]:
    routes = Routes()
    fold_runner = FoldRunner(settings_with_keys(), Codec(SchemaSet()), "log", ("accounts",), routes, name="test", snapshot=path)
    fold_runner._restore()  # pyright: ignore[reportPrivateUsage]
    return fold_runner, routes


SHAPELESS = b'1 0\n{"model":"m","owner":"o","versions":7}\n'
"""A model whose versions are a number."""


def written(path: Path, **changes: Any) -> bytes:
    routes = Routes()
    routes.apply("ApiKeyIssued", issued(1), AT)
    partitions = {f"accounts/{p}": [10 + p, "s", 100 + p, "ab" * 32] for p in range(4)}
    snapshots.write(
        path, {"code": Routes.code_version, "log_id": "log", "position": 103, "partitions": partitions} | changes, routes.dump()
    )
    return path.read_bytes()


def test_a_fold_goes_on_where_its_snapshot_stood(tmp_path: Path) -> None:
    written(path := tmp_path / "a.snapshot")
    fold_runner, routes = restored(path)
    assert (fold_runner.position, fold_runner.store, len(routes.keys)) == (103, "s", 1)
    fold_runner.save()
    assert snapshots.read(path)[0] == {
        "code": Routes.code_version,
        "log_id": "log",
        "position": 103,
        "partitions": {f"accounts/{p}": [10 + p, "s", 100 + p, "ab" * 32] for p in range(4)},
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"code": "routes-1"},
        {"log_id": "another"},
        {"partitions": {"accounts/0": [0, "s", 1, "ab" * 32]}},
        {"partitions": {f"accounts/{p}": [10, "s"] for p in range(4)}},
        {"position": "?"},
    ],
)
def test_a_snapshot_of_other_code_another_log_or_a_strange_shape_is_ignored(tmp_path: Path, changes: dict[str, Any]) -> None:
    written(path := tmp_path / "a.snapshot", **changes)
    fold_runner, routes = restored(path)
    assert (fold_runner.position, fold_runner.store, len(routes.keys)) == (0, "", 0)


def test_a_snapshot_of_an_older_format_a_torn_one_and_a_wrong_state_are_ignored(tmp_path: Path) -> None:
    data = written(path := tmp_path / "a.snapshot")
    head = {"code": Routes.code_version, "log_id": "log", "position": 1, "fresh_ms": 0, "partitions": {}}
    older = json.dumps(head).encode() + b"\n" + json.dumps({"keys": [], "models": []}).encode()
    for wrong in (older, FORMAT.replace(b"2", b"3") + data[len(FORMAT) :], data[:-1], b""):
        path.write_bytes(wrong)
        fold_runner, routes = restored(path)
        assert (fold_runner.position, len(routes.keys)) == (0, 0)
    partitions = {f"accounts/{p}": [10, "s", 100, "ab" * 32] for p in range(4)}
    for state in (b"", b"0 0\nnot a key\n", b"1 0\n{}\n", b"0 1\n{}\n", b"0 0\n" + b"0" * 64 + b"[]\n", b"0 0\n\n\n", SHAPELESS):
        snapshots.write(path, {"code": Routes.code_version, "log_id": "log", "position": 103, "partitions": partitions}, [state])
        fold_runner, routes = restored(path)
        assert (fold_runner.position, fold_runner.store, len(routes.keys), routes.models) == (0, "", 0, {})

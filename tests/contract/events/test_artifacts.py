"""Artifacts behave the same in a local folder and on an S3 server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from events.facts.fact import TenantId
from events.process.artifacts import ArtifactCorrupt, ArtifactMissing, Artifacts
from events.process.settings import Settings

ACME, OTHER = TenantId("acme"), TenantId("other")
BODY = bytes(range(256)) * 10_000
DIGEST = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    import boto3

    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    boto3.client("s3", endpoint_url=endpoint, aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1").create_bucket(
        Bucket="models"
    )
    yield endpoint
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "folder":
        return Settings(data=tmp_path)
    endpoint = request.getfixturevalue("s3")
    return Settings(data=tmp_path, artifacts_url=f"s3://models/{tmp_path.name}", s3_endpoint=endpoint, s3_access_key="a", s3_secret_key="b")  # type: ignore[arg-type]


@pytest.fixture
def stored(settings: Settings, tmp_path: Path) -> Artifacts:
    file = tmp_path / "upload"
    file.write_bytes(BODY)
    artifacts = Artifacts(settings)
    artifacts.put(ACME, DIGEST, file)
    artifacts.put(ACME, DIGEST, file)  # again changes nothing
    return artifacts


def test_an_artifact_is_read_as_it_was_stored(stored: Artifacts) -> None:
    assert stored.size(ACME, DIGEST) == len(BODY)
    assert stored.read(ACME, DIGEST) == BODY


def test_knowing_a_digest_gives_nothing_to_another_tenant(stored: Artifacts) -> None:
    with pytest.raises(ArtifactMissing):
        stored.read(OTHER, DIGEST)
    with pytest.raises(ArtifactMissing):
        stored.size(OTHER, DIGEST)


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../etc/passwd", f"md5:{'0' * 64}", f"sha256:{'Z' * 64}"])
def test_what_is_no_digest_is_missing(stored: Artifacts, digest: str) -> None:
    with pytest.raises(ArtifactMissing):
        stored.read(ACME, digest)


@pytest.mark.parametrize("tenant", ["", "..", "acme/../other", "/etc"])
def test_a_tenant_is_never_a_path(stored: Artifacts, tenant: str) -> None:
    with pytest.raises(ArtifactMissing):
        stored.read(TenantId(tenant), DIGEST)


def test_changed_bytes_are_never_returned(tmp_path: Path) -> None:
    artifacts = Artifacts(Settings(data=tmp_path))
    file = tmp_path / "upload"
    file.write_bytes(BODY)
    artifacts.put(ACME, DIGEST, file)
    path = tmp_path / "artifacts" / "acme" / DIGEST[7:9] / DIGEST[7:]
    path.write_bytes(BODY[:-1] + b"x")
    with pytest.raises(ArtifactCorrupt):
        artifacts.read(ACME, DIGEST)

"""`modelmarket quotas`: how amounts are read and shown."""

from __future__ import annotations

import pytest
import typer

from cli.quotas import _millis, _shown  # pyright: ignore[reportPrivateUsage]


def test_cores_and_gpus_are_read_as_exact_thousandths() -> None:
    assert [_millis(text) for text in ("16", "0.5", "2.25", "0.001", "0")] == [16_000, 500, 2_250, 1, 0]
    for text in ("", ".5", "-1", "1.2345", "1e3", "two", "١"):
        with pytest.raises(typer.BadParameter):
            _millis(text)


def test_amounts_are_shown_in_the_units_that_they_are_set_in() -> None:
    assert _shown("replicas", 3, 200) == ("replicas", "3", "200")
    assert _shown("cpu_millis", 1_250, 200_000) == ("CPUs", "1.25", "200")
    assert _shown("memory_bytes", 268_435_456, 512 << 30) == ("memory, GiB", "0.25", "512")

"""A writer whose producer has failed for good tells it to whoever asks, and raises nothing where it is closed."""

from __future__ import annotations

import time
from typing import Any

import confluent_kafka as ck
import pytest

from events.log.client import LogBroken, Writer
from tests.support.todays_codec import settings_with_keys


class _Refused:
    """A producer of librdkafka after a fatal error: the next call that serves callbacks raises it, whichever that is."""

    def __init__(self) -> None:
        self._raised = False

    def flush(self, _timeout_s: float) -> int:
        if not self._raised:
            self._raised = True
            raise ck.KafkaException(ck.KafkaError(ck.KafkaError._GAPLESS_GUARANTEE, "there would be a gap", fatal=True))  # pyright: ignore
        return 0

    def poll(self, timeout_s: float) -> int:
        time.sleep(timeout_s)
        return 0


def test_a_fatal_error_that_a_flush_meets_first_is_kept_and_not_raised() -> None:
    """Raised from `close`, it took the place of the error that had ended the relay."""
    writer = Writer(settings_with_keys(kafka_bootstrap="127.0.0.1:1"), "test")
    refused: Any = _Refused()
    writer._producer = refused  # pyright: ignore[reportPrivateUsage]
    assert not writer.close(0)
    assert "there would be a gap" in str(writer.fatal)
    with pytest.raises(LogBroken):
        writer.append("usage", b"k", b"v")

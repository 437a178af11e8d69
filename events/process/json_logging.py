"""Log lines of every process: one JSON object a line, on standard error, its last words included."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

logger = logging.getLogger(__name__)
_BROKER_AWAY = re.compile(
    r"(FAIL|ERROR) (?!.*authentication).*(Connect to|[Cc]onnection |[Dd]isconnected|brokers are down|transport failure|resolve|timed out"
    r"|(Receive|Send) failed)"
    r"|Unable (to )?(connect|update metadata)|Failed fetch (messages|offsets)|Heartbeat se(nd|ssion)|Group Coordinator Request failed"
    r"|LeaveGroup request failed"
)
"""What the two Kafka clients say as errors while a broker is away. They try again by themselves."""


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, part, logger, message, and whatever `extra=` adds (correlation_id …)."""

    _KNOWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "part": self._part,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {k: v for k, v in record.__dict__.items() if k not in self._KNOWN and not k.startswith("_")}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def _broker_away_is_a_warning(record: logging.LogRecord) -> bool:
    if record.levelno == logging.ERROR and record.name.startswith(("librdkafka", "aiokafka")) and _BROKER_AWAY.match(record.getMessage()):
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


def start_logging(part: str, level: int = logging.INFO) -> None:
    """JSON lines to standard error, for this whole process: what ends it or a thread of it, and Python's warnings, too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(part))
    handler.addFilter(_broker_away_is_a_warning)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _process_ends
    threading.excepthook = _thread_ends
    for chatty in ("httpx", "httpx2", "httpcore", "aiokafka", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _process_ends(cls: type[BaseException], e: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(cls, KeyboardInterrupt):
        logger.warning("this process was interrupted")
    else:
        logger.critical("this process ends: %s: %s", cls.__name__, e, exc_info=(cls, e, traceback))


def _thread_ends(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
        name = ended.thread.name if ended.thread is not None else "a thread"
        message = "thread %s ends: %s: %s"
        about = (ended.exc_type, ended.exc_value, ended.exc_traceback)
        logger.critical(message, name, ended.exc_type.__name__, ended.exc_value, exc_info=about)

"""Log lines of every process: one JSON object a line, on standard error, also the last words of a thread or of the process."""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

logger = logging.getLogger(__name__)


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


class ConnectionWarnings(logging.Filter):
    """What a client says at level error while a broker is started again is a warning: it tries again by itself, and who needs the broker says
    for how long it did without. `words`: how such messages begin."""

    def __init__(self, *words: str) -> None:
        super().__init__()
        self._words = words

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno == logging.ERROR and record.getMessage().startswith(self._words):
            record.levelno, record.levelname = logging.WARNING, logging.getLevelName(logging.WARNING)
        return True


def start_logging(part: str, level: int = logging.INFO) -> None:
    """JSON lines to standard error, for this whole process. What nobody caught is a line, too: `exception` has its traceback."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(part))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("httpx", "httpx2", "httpcore", "aiokafka", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    sys.excepthook, threading.excepthook = _process_ends, _thread_ends


def _process_ends(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logger.error("this process ends: %s: %s", kind.__name__, error, exc_info=(kind, error, trace))


def _thread_ends(ended: threading.ExceptHookArgs) -> None:
    name, error = ended.thread.name if ended.thread is not None else "unknown", ended.exc_value
    if error is not None and not isinstance(error, SystemExit):
        logger.error("thread %s ends: %s: %s", name, type(error).__name__, error, exc_info=error)

"""An HTTP server on a thread of the test's process, from its first answer until the context ends."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn

from tests.support.polling import eventually


@contextmanager
def running_server(server: uvicorn.Server) -> Generator[None]:
    """A server that cannot begin, as when its port is taken, ends its thread and says nothing."""
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started or not thread.is_alive(), "the server has begun")
    assert server.started, "the server could not begin"
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)

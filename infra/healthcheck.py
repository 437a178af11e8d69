"""Health of a container: is the process on a port of this machine ready? `python -m infra.healthcheck PORT`"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

ANSWER_S_MAX = 3.0


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=ANSWER_S_MAX) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(0 if ready(int(sys.argv[1])) else 1)

"""`ray start`, without the commands of Ray's program that are not used here: `python -m infra.ray_start start --head …`.

Ray's program loads all its commands before it runs one, Serve's among them: more than a second at the begin of each start of a stack.
It goes on without those that cannot be imported.
"""

from __future__ import annotations

import sys

UNUSED = ("ray.serve.scripts", "ray.dashboard.modules.job.cli", "ray.util.state.state_cli")


def main() -> None:
    for name in UNUSED:
        sys.modules[name] = None  # type: ignore[assignment]  # an import of it then raises ImportError
    from ray.scripts import scripts

    scripts.main()


if __name__ == "__main__":
    main()

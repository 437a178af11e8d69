"""The program of the part `ray`: clears what an earlier head of the same stack left, then becomes `ray start --block`."""

from __future__ import annotations

import os
import shutil
import sys

from events.process.settings import Settings
from infra.launcher import raynode
from infra.launcher.paths import PART_VARIABLE, paths_of
from infra.launcher.processes import end_all


def main() -> None:
    settings = Settings()
    paths = paths_of(settings)
    end_all(paths.mark, f"{PART_VARIABLE}=ray", gently_s=0)
    shutil.rmtree(paths.ray, ignore_errors=True)
    os.execv(sys.executable, raynode.command(settings, paths, sys.executable))


if __name__ == "__main__":
    main()

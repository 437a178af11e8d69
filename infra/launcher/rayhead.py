"""The program of the part `ray`: clears what an earlier head of the same stack left, then becomes `ray start --block`."""

from __future__ import annotations

import os
import shutil
import sys

from events.process.settings import Settings
from infra.launcher import raynode
from infra.launcher.paths import places_of
from infra.launcher.processes import end_all


def main() -> None:
    settings = Settings()
    places = places_of(settings)
    end_all(places.mark, f"{raynode.PART_VARIABLE}=ray", gently_s=0)
    shutil.rmtree(places.ray, ignore_errors=True)
    os.execv(sys.executable, raynode.command(settings, places, sys.executable))


if __name__ == "__main__":
    main()

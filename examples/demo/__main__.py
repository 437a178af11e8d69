"""`make demo`: runs the whole market once on this machine and prints what happens; ends with `demo ok: …` or non-zero.

The stack it started stays up for a look (`make down` ends it); `--stop` ends it right away, as tests do.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from datetime import datetime
from zoneinfo import ZoneInfo

from rich.console import Console

from events.process.settings import Settings
from examples.demo.market import DemoFailed
from examples.demo.story import Story
from infra.launcher import LaunchFailed, Stack

console = Console(highlight=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo")
    parser.add_argument("--chaos", action="store_true", help="kill -9 a worker, the gateway, the relay and Kafka while calls run")
    parser.add_argument("--stop", action="store_true", help="end the stack afterwards")
    args = parser.parse_args()
    settings = Settings()
    stack, began, ok = Stack(settings), time.monotonic(), False
    try:
        fresh(stack)
    except (DemoFailed, LaunchFailed) as failure:  # that stack is not ours to end
        console.print(f"[bold red]demo not begun:[/] {failure}", soft_wrap=True)
        return 1
    try:
        story = Story(stack, console, chaos=args.chaos)
        story.run()
        ok = True
        if not args.stop:
            console.print(what_next(settings))
        console.print(story.last_line(), style="bold green")
        return 0
    except (DemoFailed, LaunchFailed) as failure:
        console.print(f"[bold red]demo failed after {time.monotonic() - began:.0f} s:[/] {failure}", soft_wrap=True)
        console.print(f"the logs are in {settings.folder / 'logs'}")
        return 1
    finally:
        if args.stop or not ok:
            stack.down()


def fresh(stack: Stack) -> None:
    """The story begins with an empty market: what an earlier demo left in this stack's folder goes."""
    folder = stack.settings.folder
    marker = folder / "demo"
    if not marker.exists() and folder.exists() and any(path.name != "launcher.lock" for path in folder.iterdir()):
        raise DemoFailed(
            f"{folder} holds a stack that is not the demo's. Give the demo another one: "
            f"make demo MODELMARKET_STACK=demo MODELMARKET_BASE_PORT=18400 MODELMARKET_DATA=.modelmarket/demo"
        )
    stack.down()
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    marker.touch()


def what_next(settings: Settings) -> str:
    market = ".venv/bin/modelmarket"
    return f"""
[bold]Next[/] (the stack is still up)
  command API   {settings.commands}/docs        query API  {settings.queries}/docs
  gateway       {settings.gateway}/v2           ClickHouse {settings.clickhouse}
  {market} status
  {market} log tail usage -n 3
  {market} bill globex {datetime.now(ZoneInfo("Asia/Shanghai")):%Y-%m} --verify
  {market} replay usage
  make demo CHAOS=1        the same story, with processes killed while calls run
  make down                stops everything
"""


if __name__ == "__main__":
    sys.exit(main())

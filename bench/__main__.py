"""`make bench`: runs the named benchmarks on a stack of its own, prints their table, writes JSON with the facts of the machine.

python -m bench [--quick] [NAME …]. Absolute figures mean little on a shared machine; the ratio to the baseline of the same run does.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypedDict

from rich.console import Console
from rich.table import Table

from events.process.settings import Settings
from infra.launcher import Stack
from infra.launcher.ports import free_block

NAMES = ("stack", "log_to_table", "fold", "commands", "invoke")
console = Console()


class Row(TypedDict, total=False):
    """One figure. `baseline` is what it is compared with in the same run, `ratio` the figure against it, `target` what was promised."""

    metric: str
    value: float
    unit: str
    baseline: str
    ratio: float
    target: str


class Benchmark(Protocol):
    NAME: str

    def run(self, stack: Stack, quick: bool) -> list[Row]: ...


def machine() -> dict[str, Any]:
    """What the figures were taken on: never a name or an address."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ""
    )
    memory_kib = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_kib / 2**20, 1),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks on the real parts.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run, not how fast is it")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    unknown = set(args.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    facts, results, failed = machine(), dict[str, list[Row]](), False
    for name in args.names or NAMES:
        benchmark: Any = importlib.import_module(f"bench.{name}")
        folder = Path(tempfile.mkdtemp(prefix="mm-bench-"))
        with free_block() as base_port:
            stack = Stack(Settings(stack="bench", base_port=base_port, data=folder))
            try:
                console.rule(name)
                results[name] = benchmark.run(stack, args.quick)
            except Exception:
                failed = True
                console.print_exception()
            finally:
                stack.down()
                shutil.rmtree(folder, ignore_errors=True)
        _show(name, results.get(name, []))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{datetime.now(UTC):%Y%m%dT%H%M%S}.json"
    path.write_text(json.dumps({"machine": facts, "quick": args.quick, "results": results}, indent=1) + "\n")
    console.print(f"{facts['cores']} cores, {facts['memory_gib']} GiB, {facts['cpu']}; written to {path}")
    return int(failed)


def _show(name: str, rows: list[Row]) -> None:
    table = Table("metric", "value", "unit", "baseline", "ratio", "promised", title=name, title_justify="left")
    for row in rows:
        ratio = f"{row['ratio']:.2f}" if row.get("ratio") is not None else ""
        table.add_row(row["metric"], f"{row['value']:,.6g}", row.get("unit", ""), row.get("baseline") or "", ratio, row.get("target") or "")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())

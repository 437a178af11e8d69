"""`make bench`: runs the named benchmarks on a stack of its own, prints their table, writes JSON with the facts of the machine.

python -m bench [--quick] [--runs N] [NAME …]. With --runs each figure is the median of N runs, each on a new stack.
Absolute figures mean little on a shared machine; the ratio to the baseline of the same run does.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NotRequired, Protocol, TypedDict, cast

from rich.console import Console
from rich.table import Table

from events.process.passwords import SET_UP
from events.process.settings import Settings
from infra.launcher import Stack
from infra.launcher.ports import free_block

NAMES = (
    *("stack", "log_to_table", "fold", "commands", "invoke", "catalog", "checks", "month_end", "next_bill", "noisy_neighbour"),
    "many_models",
)
console = Console()


class Row(TypedDict):
    """One figure. `baseline` is what it is compared with in the same run, `ratio` the figure against it, `target` what was promised.

    Of several runs: `value` and `ratio` are medians, `values` and `ratios` hold those of each run, the texts are those of the first."""

    metric: str
    value: float
    unit: NotRequired[str]
    baseline: NotRequired[str]
    ratio: NotRequired[float]
    target: NotRequired[str]
    values: NotRequired[list[float]]
    ratios: NotRequired[list[float]]


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
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="run each N times and show medians")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    unknown = set(args.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if args.runs < 1:
        parser.error("--runs is at least 1")
    facts, results, failed = machine(), dict[str, list[Row]](), False
    for name in args.names or NAMES:
        runs: list[list[Row]] = []
        for number in range(args.runs):
            console.rule(name if args.runs == 1 else f"{name}, run {number + 1} of {args.runs}")
            try:
                runs.append(run_once(name, args.quick))
            except Exception:
                failed = True
                console.print_exception()
        results[name] = medians(runs)
        _show(name, results[name])
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{datetime.now(UTC):%Y%m%dT%H%M%S}.json"
    path.write_text(json.dumps({"machine": facts, "quick": args.quick, "runs": args.runs, "results": results}, indent=1) + "\n")
    console.print(f"{facts['cores']} cores, {facts['memory_gib']} GiB, {facts['cpu']}; written to {path}")
    return int(failed)


def run_once(name: str, quick: bool) -> list[Row]:
    """One run of a benchmark on a stack of its own, which is gone afterwards."""
    benchmark: Benchmark = cast("Any", importlib.import_module(f"bench.{name}"))
    folder = Path(tempfile.mkdtemp(prefix="mm-bench-"))
    with free_block() as base_port:
        stack = Stack(Settings(stack="bench", base_port=base_port, data=folder, kafka_sasl_username=SET_UP))
        try:
            return benchmark.run(stack, quick)
        finally:
            stack.down()
            shutil.rmtree(folder, ignore_errors=True)


def medians(runs: list[list[Row]]) -> list[Row]:
    """One row per figure: every run of a benchmark has the same figures in the same order."""
    return runs[0] if len(runs) == 1 else [median(list(rows)) for rows in zip(*runs, strict=True)]


def median(rows: list[Row]) -> Row:
    values, ratios = [row["value"] for row in rows], [row["ratio"] for row in rows if "ratio" in row]
    merged = rows[0].copy()
    merged["value"], merged["values"] = statistics.median(values), values
    if ratios:
        merged["ratio"], merged["ratios"] = statistics.median(ratios), ratios
    return merged


def _show(name: str, rows: list[Row]) -> None:
    table = Table("metric", "value", "unit", "baseline", "ratio", "promised", title=name, title_justify="left")
    for row in rows:
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        table.add_row(row["metric"], f"{row['value']:,.6g}", row.get("unit", ""), row.get("baseline") or "", ratio, row.get("target") or "")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())

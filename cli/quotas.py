"""`modelmarket quotas`: how much the loaded versions of a tenant may take together, and how much they take."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

import typer
from rich.table import Table

from cli.admin_client import JsonFlag, KeyFile, call_command_api, console
from cli.failures import explained_failures
from cli.tables import table
from events.facts.accounts import ResourceQuota
from events.process.settings import Settings

app = typer.Typer(help="Quotas of replicas, CPU, GPU and memory: show a tenant's, decide another one.", no_args_is_help=True)
GIB = 1 << 30


def _millis(text: str) -> int:
    """`2.5` (cores, or GPUs) → 2500."""
    whole, _, rest = text.partition(".")
    if not re.fullmatch(r"[0-9]{1,6}", whole) or not re.fullmatch(r"[0-9]{0,3}", rest):
        raise typer.BadParameter(f"{text!r}: write a number with at most three decimals, for example 16 or 0.5")
    return int(whole) * 1000 + int(rest.ljust(3, "0"))


TenantArgument = Annotated[str, typer.Argument(help="The tenant that owns the models.")]
CpuOption = Annotated[str | None, typer.Option("--cpu", help="Cores.")]
GpuOption = Annotated[str | None, typer.Option("--gpu", help="GPUs; 0.5 is half of one.")]


@app.command("show")
def show(tenant: TenantArgument, as_json: JsonFlag = False, key_file: KeyFile = None) -> None:
    """The quota and what is taken of it, as the next deployment is decided on them."""
    with explained_failures():
        found = _read(Settings(), tenant, key_file)
    if as_json:
        console.print_json(json.dumps(found))
        return
    console.print(_table(found))
    console.print("the default quota: nobody decided another one" if found["default"] else "decided for this tenant", highlight=False)


@app.command("set")
def set_(
    tenant: TenantArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is on the log.", prompt=True)],
    replicas: Annotated[int | None, typer.Option("--replicas", min=0)] = None,
    cpu: CpuOption = None,
    gpu: GpuOption = None,
    memory_gib: Annotated[int | None, typer.Option("--memory-gib", min=0)] = None,
    key_file: KeyFile = None,
) -> None:
    """Decide another quota; what is not named stays. Nothing that is loaded is stopped: what would pass the quota is refused from now on."""
    amounts = {
        "replicas": replicas,
        "cpu_millis": None if cpu is None else _millis(cpu),
        "gpu_millis": None if gpu is None else _millis(gpu),
        "memory_bytes": None if memory_gib is None else memory_gib * GIB,
    }
    named = {name: amount for name, amount in amounts.items() if amount is not None}
    if not named:
        raise typer.BadParameter("name at least one of --replicas, --cpu, --gpu, --memory-gib")
    settings = Settings()
    with explained_failures():
        before = _read(settings, tenant, key_file)
        body = {**before["quota"], **named, "reason": reason}
        call_command_api(settings, key_file, "POST", f"/v1/tenants/{tenant}/quota", body, if_match=before["version"])
        console.print(_table(_read(settings, tenant, key_file)))


def _read(settings: Settings, tenant: str, key_file: Any) -> dict[str, Any]:
    return call_command_api(settings, key_file, "GET", f"/v1/tenants/{tenant}/quota")


def _table(found: dict[str, Any]) -> Table:
    amounts = table("of all loaded versions", "taken", "quota", whole=["taken", "quota"], right=["taken", "quota"])
    for name in ResourceQuota.model_fields:
        used, quota = found["used"][name], found["quota"][name]
        amounts.add_row(*_shown(name, used, quota), style="red" if used > quota else "")
    return amounts


def _shown(name: str, used: int, quota: int) -> tuple[str, str, str]:
    kind, _, unit = name.partition("_")
    if unit == "millis":
        return f"{kind.upper()}s", f"{used / 1000:g}", f"{quota / 1000:g}"
    if unit == "bytes":
        return f"{kind}, GiB", f"{round(used / GIB, 2):g}", f"{round(quota / GIB, 2):g}"
    return name, str(used), str(quota)

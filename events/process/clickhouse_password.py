"""The password of our user at ClickHouse: at the local engine a file that it writes into the data folder at its first start, else a setting."""

from __future__ import annotations

from pathlib import Path

from events.process.settings import Settings


def clickhouse_password(settings: Settings) -> str:
    """Empty when it is neither set nor in its file: the server will say that it wants one."""
    file = password_file(settings.folder, settings.clickhouse_user)
    if not settings.clickhouse_url and file.is_file():
        return file.read_text().strip()
    return settings.clickhouse_password.get_secret_value()


def password_file(folder: Path, user: str) -> Path:
    """In a stack's data folder; readable by its owner only."""
    return folder / "clickhouse" / f"{user}.password"

"""The launcher's one exception: what failed, the end of the part's log, and what to do."""

from __future__ import annotations


class LaunchFailed(Exception):
    """The stack could not be brought into the wanted state."""

    def __init__(self, code: str, message: str, *, part: str = "", remedy: str = "", log_tail: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.part = part
        self.remedy = remedy
        self.log_tail = log_tail

    def __str__(self) -> str:
        lines = [f"{self.code}: {self.message}"]
        if self.log_tail:
            lines += ["last lines of its log:", *(f"    {line}" for line in self.log_tail.splitlines())]
        if self.remedy:
            lines.append(f"what to do: {self.remedy}")
        return "\n".join(lines)

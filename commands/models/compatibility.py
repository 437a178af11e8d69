"""May callers of the old version call the new one unchanged? The differences that say no."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from commands.models.semver import SemVer, parse
from events.facts.models import Technical, TensorSpec

ANY = -1


def differences(old: Technical, new: Technical) -> tuple[str, ...]:
    """Each reason why a call that was right for `old` fails with `new`, or why its answer is not as declared. Empty: compatible."""
    return (*_inputs(old.inputs, new.inputs), *_outputs(old.outputs, new.outputs))


def neighbours(version: SemVer, others: Sequence[str]) -> tuple[str | None, str | None]:
    """The versions of the same major right below and right above: the two that must agree with a new one.
    Major 0 promises nothing (SemVer clause 4)."""
    if version.major == 0:
        return None, None
    ranked = sorted((s, text) for text in others if (s := parse(text)) is not None and s.major == version.major)
    below = [text for s, text in ranked if s < version]
    above = [text for s, text in ranked if s > version]
    return (below[-1] if below else None), (above[0] if above else None)


def _inputs(old: Sequence[TensorSpec], new: Sequence[TensorSpec]) -> list[str]:
    had, has = _by_name(old), _by_name(new)
    found = [f"input '{name}' is gone" for name in had if name not in has]
    found += [f"input '{name}' is new and no caller sends it" for name in has if name not in had]
    for name in had.keys() & has.keys():
        a, b = had[name], has[name]
        if a.datatype != b.datatype:
            found.append(f"input '{name}' was {a.datatype}, now {b.datatype}")
        elif len(a.shape) != len(b.shape) or any(n not in (ANY, o) for o, n in zip(a.shape, b.shape, strict=True)):
            found.append(f"input '{name}' took shape {list(a.shape)}, now only {list(b.shape)}")
        elif a.nan_allowed and not b.nan_allowed:
            found.append(f"input '{name}' took NaN and infinity, now only finite numbers")
    return sorted(found)


def _outputs(old: Sequence[TensorSpec], new: Sequence[TensorSpec]) -> list[str]:
    had, has = _by_name(old), _by_name(new)
    found = [f"output '{name}' is gone" for name in had if name not in has]
    for name in had.keys() & has.keys():
        a, b = had[name], has[name]
        if a.datatype != b.datatype:
            found.append(f"output '{name}' was {a.datatype}, now {b.datatype}")
        elif len(a.shape) != len(b.shape) or any(o not in (ANY, n) for o, n in zip(a.shape, b.shape, strict=True)):
            found.append(f"output '{name}' had shape {list(a.shape)}, now {list(b.shape)}")
    return sorted(found)


def _by_name(tensors: Sequence[TensorSpec]) -> Mapping[str, TensorSpec]:
    return {t.name: t for t in tensors}

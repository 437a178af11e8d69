"""Hides pandas from Ray's processes: an import of it fails as if it were not installed.

Serve imports it only to be able to print data frames, and it is installed only because chDB's package asks for it: a second and
40 MB in each of a node's processes. This folder is on the path of Ray's processes alone (`infra/launcher/raynode.py`).
"""

from __future__ import annotations

raise ImportError("pandas is left out of Ray's processes, see infra/lean/pandas.py")

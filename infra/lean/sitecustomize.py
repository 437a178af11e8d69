"""Python imports this module first in each of Ray's processes: it makes what they import next cheaper.

A start of a stack starts a dozen of them, and each loads what Ray might need somewhere. This folder is on the path of Ray's processes alone
(`infra/launcher/raynode.py`).
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

UNUSED = ("jsonschema", "requests")
"""Ray imports them to ask where a TPU is and to check plugins of its runtime environments: 0.1 s in each process. `importlib.util.LazyLoader`
would load them at the second `import`, and Ray has two."""
GARBAGE_MAX = 50_000
"""New objects between two collections. With Python's 700 a tenth of the import of Ray Serve is a search for garbage that is not there. The gateway
sets its own bound later (`serving/gateway/state.py`)."""

_loading = threading.RLock()


class LoadedAtFirstUse(ModuleType):
    """A module that is executed when somebody asks for something in it."""

    def __getattr__(self, name: str) -> object:
        """Called for what is not there: before the first use, for everything. Raises AttributeError."""
        with _loading:
            postponed = self.__dict__.pop("_postponed", None)
            if postponed is not None:
                loader, folders = postponed
                self.__path__, self.__package__ = folders, self.__name__
                if self.__spec__ is not None:
                    self.__spec__.submodule_search_locations = folders
                loader.exec_module(self)
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None


class Postponed(Loader):
    def __init__(self, loader: Loader, folders: list[str] | None) -> None:
        self._real = (loader, folders)

    def create_module(self, spec: ModuleSpec) -> None:
        """A plain one."""

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["_postponed"] = self._real
        module.__class__ = LoadedAtFirstUse


class Loaded(Loader):
    """For a module that came with its package, which was executed after Python had begun to look for the module."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


class UnusedFinder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, submodule = fullname.partition(".")
        if package not in UNUSED:
            return None
        if submodule:
            there = sys.modules.get(fullname)
            return None if there is None else ModuleSpec(fullname, Loaded(there))
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            # Without its folders: an import of `requests.adapters` asks the package for them first, and so executes it.
            spec.loader, spec.submodule_search_locations = Postponed(spec.loader, spec.submodule_search_locations), None
        return spec


sys.meta_path.insert(0, UnusedFinder())
gc.set_threshold(GARBAGE_MAX)

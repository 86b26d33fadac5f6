"""Imported by Python at start-up where ``megatron-patch run`` has put this directory on the path.

Waits for the first import of Megatron, imports ``megatron_patch`` just before it, and hands on to
the ``sitecustomize`` that would have been imported otherwise. A process that never imports Megatron
pays for this file only. Any Python 3 can parse it: the command may start other interpreters.
"""

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))


class _BeforeMegatron:
    """A finder that finds nothing, and sees the first search for Megatron.

    It stays where it is: to remove it in the middle of a search would make that skip a finder.
    """

    waiting = True

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if self.waiting and (fullname == "megatron" or fullname.startswith("megatron.")):
            self.waiting = False
            _import_package()


def _import_package() -> None:
    """Import the package that this file is a part of, wherever the interpreter's path leads."""
    if "megatron_patch" in sys.modules:
        return
    package = os.path.dirname(_HERE)
    try:
        from importlib.util import module_from_spec, spec_from_file_location

        spec = spec_from_file_location(
            "megatron_patch",
            os.path.join(package, "__init__.py"),
            submodule_search_locations=[package],
        )
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        sys.modules["megatron_patch"] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules["megatron_patch"]
            raise
    except Exception as error:
        # A launch that may run unpatched must not fail for want of the patches.
        if os.environ.get("MEGATRON_PATCH_STRICT") == "1":
            raise
        why = " ".join(f"{type(error).__name__}: {error}".split())
        sys.stderr.write(f"megatron_patch: not active in process {os.getpid()}: {why}\n")


def _chain() -> None:
    """Import the next ``sitecustomize`` on the path in this one's place, if there is one."""
    from importlib.machinery import PathFinder

    others = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != _HERE]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is None or spec.loader is None:
        return
    from importlib.util import module_from_spec

    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


sys.meta_path.insert(0, _BeforeMegatron())
_chain()

"""The command ``megatron-patch``.

Beside the package and not in it: ``megatron_patch`` on the path of who calls the command may be
Pai-Megatron-Patch, which is used by being put there.
"""

import sys

if __name__ == "__main__" and not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    del sys.path[0]  # the working directory, or that of this file: see `main_module`

# isort: split
import importlib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

NAME = "_megatron_patch"  # those of `megatron_patch.running`
COMMAND = "_is_command"


def main() -> int:
    """Run the command of the package beside this file; returns the exit status."""
    package = Path(__file__).with_name("megatron_patch")
    spec = spec_from_file_location(
        NAME, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[NAME] = module_from_spec(spec)
    vars(module)[COMMAND] = True
    spec.loader.exec_module(module)
    return int(importlib.import_module(f"{NAME}.cli").main())


if __name__ == "__main__":
    sys.exit(main())

"""Imported first of all: ``python -m megatron_patch`` is not to import from where it is called.

``python -m`` puts the working directory before the standard library on the path. What it imports
itself before any code of ours (a few modules of the standard library, by its version, and this
package) comes from there all the same. Nothing is imported here, for that reason.
"""

import sys


def _leave_working_directory(module: str) -> None:
    """Take the working directory off the path while ``python -m module`` starts."""
    if sys.argv[:1] != ["-m"] or sys.flags.isolated or getattr(sys.flags, "safe_path", False):
        return  # another start, or the directory is not on the path
    for option, value in zip(sys.orig_argv[1:], [*sys.orig_argv[2:], ""]):  # noqa: B905
        if option.startswith("-m") or (option.startswith("-") and option.endswith("m")):
            if module in (option[2:], value):
                del sys.path[0]
            return


_leave_working_directory(__name__.rpartition(".")[0])

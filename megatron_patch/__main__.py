"""``python -m megatron_patch``: the command ``megatron-patch``, but for where Python looks first.

``python -m`` itself imports from the working directory before any code of this package runs. In a
tree that nobody has read yet, call ``megatron-patch``, or ``python -P -m megatron_patch``.
"""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())

"""Names that edits take from their module: without one of them, the source is not taken."""

from __future__ import annotations

import pytest

from megatron_patch.edits import Add, Before, Edit, Replace, Requires, Substitute
from megatron_patch.judge import judge
from megatron_patch.verdicts import Verdict

from .sample import digest_in, make_patch

TEXT = """
class Thing:
    limit = 3

    def one(self, given):
        total = count(given)
        return total

    def two(self):
        return 2
"""
ONE, TWO = "m:Thing.one", "m:Thing.two"


def hook(self):  # type: ignore[no-untyped-def]
    rows = math.inf  # type: ignore[name-defined]  # noqa: F821
    self.rows = rows


def other_two(self):  # type: ignore[no-untyped-def]
    return math.pi  # type: ignore[name-defined]  # noqa: F821


class Thing:
    """For a helper whose default is a name of the class around it."""

    limit = 3

    def helper(self: Unknown, given: Unknown, most=limit) -> Unknown:  # type: ignore  # noqa: F821
        found: Unknown = [math.sqrt(n) for n in given]  # type: ignore  # noqa: F821
        return min(found, default=most)


def of_limit(given):  # type: ignore[no-untyped-def]
    return limit + math.pi + len(given)  # type: ignore[name-defined]  # noqa: F821


USES = {
    "a substitute": [Substitute(ONE, "total", "math.ceil(total)")],
    "a substitute with a metavariable": [
        Substitute(ONE, "total = METAVARIABLE_x", "total = math.ceil(METAVARIABLE_x)")
    ],
    "statements": [Substitute(ONE, "total = count(given)", "rows = math.pi\ntotal = rows")],
    "a hook": [Before(TWO, hook)],
    "a replacement": [Replace(TWO, other_two)],
    "a helper": [Requires(TWO, "a sample"), Add("m:Thing._helper", Thing.helper)],
    "a helper of the module": [Requires(TWO, "a sample"), Add("m:PI", "PI = math.pi")],
    "the name and a helper": [
        Substitute(TWO, "return 2", "return _pi() + math.pi"),
        Add("m:_pi", "_pi = int"),
    ],
}
each_use = pytest.mark.parametrize("edits", USES.values(), ids=USES)


def verdict(text: str, edits: list[Edit], accepted: bool = False) -> tuple[Verdict, str]:
    known = digest_in(TEXT)
    patch = make_patch(*edits, known=(lambda _: "0" * 16) if accepted else known)
    digests = frozenset(map(known, patch.targets)) if accepted else frozenset()
    found = judge(patch, {"m": text}.get, digests)
    assert (found.variant is not None) is (found.verdict is Verdict.APPLICABLE)
    return found.verdict, found.reason


@each_use
@pytest.mark.parametrize("accepted", [False, True], ids=["known", "accepted"])
@pytest.mark.parametrize(
    "above",
    [
        "import math",
        "import os.path as math",
        "from numbers import math",
        "math = 1",
        "try:\n    import math\nexcept ImportError:\n    HAVE_MATH = False",
        "if TYPE_CHECKING:\n    import os\nelse:\n    import math",
        "def math(): pass",
        "class math: pass",
    ],
)
def test_a_name_of_the_module_is_used(above, accepted, edits):
    assert verdict(f"{above}\n{TEXT}", edits, accepted)[0] is Verdict.APPLICABLE


@each_use
@pytest.mark.parametrize("accepted", [False, True], ids=["known", "accepted"])
@pytest.mark.parametrize(
    "above",
    [
        "",
        "import os",
        "import math as mathematics",
        "import os.math",
        "if TYPE_CHECKING:\n    import math",
        "if typing.TYPE_CHECKING:\n    import math",
        "class Other:\n    import math",
        "def other():\n    import math",
        "from numbers import *",
    ],
)
def test_without_a_name_that_they_use_the_edits_are_not_made(above, accepted, edits):
    found, reason = verdict(f"{above}\n{TEXT}", edits, accepted)
    assert found is Verdict.DRIFTED
    assert reason.endswith("but the edits use m:math, and no such name is defined there")


def test_each_name_that_is_lacking_is_told_once():
    edits = [
        Substitute(ONE, "total = count(given)", "total = math.ceil(np.sum(given))"),
        Replace(TWO, other_two),
    ]
    assert "use m:math, m:np, and" in verdict(TEXT, edits)[1]
    assert "use m:math, and" in verdict(f"import numpy as np\n{TEXT}", edits)[1]


@pytest.mark.parametrize(
    "put",
    [
        "total = count(given) + 1",  # the target's own
        "total = len(given)",  # Python's own
        "total = self.limit",
        "import math\ntotal = math.pi",
        "total = sum(row for row in given)",
        "total = (lambda row: row)(given)",
        "def add(a, *b, c=1, **d):\n    return a, b, c, d\ntotal = add(given)",
        "try:\n    total = 1\nexcept ValueError as error:\n    total = error",
        "with open(given) as file:\n    total = file",
        "total = __name__",
    ],
)
def test_a_name_that_is_bound_elsewhere_need_not_be_the_modules(put):
    edits = [Substitute(ONE, "total = count(given)", put)]
    assert verdict(TEXT, edits)[0] is Verdict.APPLICABLE


def test_what_other_edits_bind_is_there():
    edits = [
        Before(ONE, hook),
        Substitute(ONE, "return total", "return total + rows + LIMIT"),
        Add("m:LIMIT", "LIMIT = 1"),
    ]
    assert verdict(f"import math\n{TEXT}", edits)[0] is Verdict.APPLICABLE
    assert "use m:LIMIT, and" in verdict(f"import math\n{TEXT}", edits[:-1])[1]


def test_a_local_of_what_is_replaced_as_a_whole_is_gone():
    def one(self, given):  # type: ignore[no-untyped-def]
        return total  # type: ignore[name-defined]  # noqa: F821

    assert "use m:total, and" in verdict(TEXT, [Replace(ONE, one)])[1]


def test_names_of_the_class_are_seen_by_the_defaults_of_a_helper_and_not_in_it():
    requires = Requires(TWO, "a sample")
    edits = [requires, Add("m:Thing._of_limit", of_limit)]
    assert "use m:limit, and" in verdict(f"import math\n{TEXT}", edits)[1]
    edits = [requires, Add("m:_helper", Thing.helper)]
    assert "use m:limit, and" in verdict(f"import math\n{TEXT}", edits)[1]

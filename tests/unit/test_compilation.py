"""A definition compiles to the code that its module has, from its text and from its tree."""

from __future__ import annotations

from dataclasses import replace
from types import CodeType

import pytest

from megatron_patch.compilation import compile_code
from megatron_patch.definitions import locate

MODULES = {
    "a method": (
        "import os\n\n\nclass A:\n    def f(self, x=1):\n        return os.path.join(x, '')\n"
    ),
    "a class in a class": (
        "class A:\n    class B:\n        def f(self):\n            return __class__\n"
    ),
    "a class in a class, with tabs": (
        "class A:\n\tclass B:\n\t\tdef f(self):\n\t\t\treturn __class__\n"
    ),
    "a function": "def f():\n    '''Doc.'''\n    return [x for x in f.seen]\n",
    "a coroutine with a decorator": "import a\n\n\n@a.b(\n    1\n)\nasync def f():\n    await a\n",
    "in a try": (
        "try:\n    import a\n\n    def f():\n        return a.b\n\nexcept ImportError:\n    pass\n"
    ),
    "with annotations as text": (
        "from __future__ import annotations\n\n\ndef f(x: y) -> z:\n    pass\n"
    ),
    "an import below it": "def f():\n    return os.sep\n\n\nimport os\n",
}


def codes(code: CodeType) -> dict[str, CodeType]:
    """The codes below that of a module, by name."""
    found: dict[str, CodeType] = {}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= {constant.co_name: constant, **codes(constant)}
    return found


@pytest.mark.parametrize("name", MODULES)
def test_it_is_the_code_of_the_module(name):
    text = MODULES[name]
    expected = codes(compile(text, "m.py", "exec", dont_inherit=True))["f"]
    qualname = {"a method": "A.f"}.get(name, "A.B.f" if "class in" in name else "f")
    for parse in (False, True):
        definition = locate("m", text, qualname)
        assert definition is not None
        # Without a tree of its own, the text is compiled, if there is room above it.
        plain = replace(definition, found=None)
        if parse:
            assert plain.node
        assert plain.is_parsed is parse
        code = compile_code(plain, "m.py")
        assert code == expected
        assert list(code.co_lines()) == list(expected.co_lines())

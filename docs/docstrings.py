"""Docstrings are plain text with Sphinx's roles; this griffe extension turns them into Markdown."""

import re
from typing import Any

import griffe


class SphinxRoles(griffe.Extension):
    """``:func:`hrm.load` `` becomes code, and ``::`` before an indented block a colon (or nothing, on its own line)."""

    def on_instance(self, *, obj: griffe.Object, **unused: Any) -> None:
        if obj.docstring is not None:
            text = re.sub(r":(?:func|class|meth|mod|attr|data):`~?([^`]+)`", r"`\1`", obj.docstring.value)
            text = re.sub(r"^[ \t]*::$", "", text, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)

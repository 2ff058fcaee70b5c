"""Docstrings are plain text with Sphinx's roles; this griffe extension turns the roles into links of MkDocs."""

import re
from typing import Any

import griffe


class SphinxRoles(griffe.Extension):
    """``:func:`hrm.load` `` becomes a link to that name, and ``::`` before an indented block a colon."""

    def on_instance(self, *, obj: griffe.Object, **unused: Any) -> None:
        if obj.docstring is not None:
            text = re.sub(r":(?:func|class|meth|mod|attr):`~?([^`]+)`", self._link, obj.docstring.value)
            obj.docstring.value = re.sub(r"^(.*\S)?[ \t]*::$", r"\1:", text, flags=re.MULTILINE)

    @staticmethod
    def _link(match: re.Match[str]) -> str:
        return f"`{match[1]}`"

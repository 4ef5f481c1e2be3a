"""Docstrings name what they refer to by Sphinx's roles; Markdown knows links and code."""

from __future__ import annotations

import re
from typing import Any

import griffe

import relex_ext

_ROLE = re.compile(r":\w+:`~?([\w.]+)`")


def links(text: str) -> str:
    """``:func:`gram```, ``:func:`relex_ext.gram```: a link where that is public, else code."""

    def link(role: re.Match[str]) -> str:
        name = role[1].removeprefix("relex_ext.")
        if name in relex_ext.__all__:
            return f"[`{name}`][relex_ext.{name}]"
        return f"`{role[1]}`"

    return _ROLE.sub(link, text)


class Roles(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = links(obj.docstring.value)

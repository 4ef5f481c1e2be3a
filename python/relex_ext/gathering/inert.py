"""What is put in the place of the classes that a pickle names: it keeps what it is given.

So nothing that a pickle says can run, whatever it says, and what another version of torch has
written is read without having its classes.
"""

from __future__ import annotations

from typing import Any

MOST_ARGUMENTS = 64
"""Of one call in a pickle; each is kept, and a pickle repeats calls for a few bytes each."""


class Inert:
    """An object that a pickle makes: ``arguments`` of its making, ``state`` put into it after."""

    path = ""
    """Of the class it stands for, ``torch.Size``."""

    arguments: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *arguments: Any) -> Inert:
        if len(arguments) > MOST_ARGUMENTS:
            raise ValueError(f"more than {MOST_ARGUMENTS} arguments of {cls.path}")
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def said(self, name: str) -> Any:
        """A part of its state, None without one."""
        return self.state.get(name) if isinstance(self.state, dict) else None


def stand_in(path: str) -> type[Inert]:
    """A class for one reading of one pickle: what that does to it is forgotten with it."""
    return type(path.rpartition(".")[2], (Inert,), {"path": path})


def is_a(value: object, path: str) -> bool:
    """Whether a pickle made it of the class of that path."""
    return isinstance(value, Inert) and value.path == path

"""What can go wrong between here and the Hub, each in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from relex_ext.errors import InputError, RelexError
from relex_ext.hub.names import HubName

FAILURES: tuple[type[Exception], ...] = (
    OSError,
    RuntimeError,
    ValueError,
    *HfHubHTTPError.__bases__,
)
"""All that huggingface_hub raises: the base of its errors is that of its HTTP library, whichever
that is in the version at hand; uploads end in the two others."""


@contextmanager
def telling(name: HubName, kind: type[RelexError] = InputError) -> Iterator[None]:
    """Failures of what is done about ``name`` become one line, of this kind.

    Raises:
        RelexError: what the Hub, or the way to it, refused.
    """
    try:
        yield
    except RelexError:
        raise
    except FAILURES as error:
        raise kind(f"{name}: {_line(name, error, kind is InputError)}") from error


def unreachable(error: BaseException) -> bool:
    """Whether nobody has answered: that says nothing about the repository."""
    if isinstance(error, HfHubHTTPError):
        return status_of(error) >= 500
    return not isinstance(error, (RuntimeError, ValueError))


def status_of(error: BaseException) -> int:
    """The HTTP status of an error, 0 where there is none."""
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def _line(name: HubName, error: BaseException, reading: bool) -> str:
    """``reading``: the name might have been meant as a folder's."""
    status = status_of(error)
    here = "no such folder here, " if reading else ""
    if isinstance(error, HFValidationError):
        return "no name that a repository can have"
    if isinstance(error, GatedRepoError):
        return (
            f"a gated repository; ask for access on {constants.ENDPOINT}/{name.repo} and log in "
            "(hf auth login)"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"the repository has no revision {name.revision or 'main'}"
    if isinstance(error, RepositoryNotFoundError):
        return f"{here}no such repository on the Hub, or a private one; for those, hf auth login"
    if status == 401:
        return "the Hub refuses the token, or asks for one; log in again (hf auth login)"
    if status == 403:
        return "the Hub refuses access; the token lacks the permission (hf auth login)"
    if isinstance(error, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return f"{here}not in the Hub's cache, and HF_HUB_OFFLINE is set"
    if isinstance(error, LocalEntryNotFoundError):
        return f"{here}not in the Hub's cache, and the Hub cannot be reached"
    if isinstance(error, EntryNotFoundError):
        return "the repository has no such file"
    if status:
        return f"the Hub answers with status {status}"
    return f"the Hub cannot be read: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = (str(error) or type(error).__name__).strip().splitlines()
    return lines[0]

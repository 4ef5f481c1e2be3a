"""Parts of the Hub's files."""

from __future__ import annotations

from huggingface_hub import HfFileSystem, constants

from relex_ext.errors import InputError
from relex_ext.hub.failures import telling
from relex_ext.hub.names import HubName

PIECE = 16 << 20
"""Bytes of one request, which is in memory until it is written."""


class Ranges:
    """One for all threads: it remembers which commits there are."""

    def __init__(self) -> None:
        self._files = HfFileSystem(endpoint=constants.ENDPOINT)

    def read(self, name: HubName, path: str, size: int, begin: int, end: int) -> bytes:
        """Bytes [begin, end) of a file of a commit, which has ``size``.

        Raises:
            InputError: they cannot be had, or others come.
        """
        place = f"{name.repo}@{name.revision}/{path}"
        with telling(name):
            data: bytes = self._files.cat_file(place, begin, end, cache_type="none", size=size)
        if len(data) != end - begin:
            raise InputError(
                f"{name}: {path}: expected {end - begin} bytes from {begin} on, found {len(data)}"
            )
        return data

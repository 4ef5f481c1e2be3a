"""What was logged in a test."""

from __future__ import annotations

import logging

import pytest


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Without the information beside them, which is logged if an earlier test asked for it."""
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]

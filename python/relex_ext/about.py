"""What this installation is made of, in one line: for ``relex --version`` and reports of bugs."""

from __future__ import annotations

import argparse
import platform
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from relex_ext import __version__

PACKAGES = ("numpy", "safetensors", "torch", "triton", "transformers")
"""Named with their versions, if they are there; nothing of them is imported."""


def describe() -> str:
    from relex_ext import _core

    parts = [
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        f"kernels {', '.join(_core.isas())}",
        _cuda(),
        ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name))),
    ]
    return f"relex_ext {__version__} ({'; '.join(parts)})"


def _cuda() -> str:
    if find_spec("relex_ext._cuda") is None:
        return "no CUDA kernels"
    try:
        return f"CUDA kernels {import_module('relex_ext._cuda').ARCHITECTURES}"
    except ImportError as error:
        return f"CUDA kernels that cannot be loaded, {error}"


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


class Version(argparse.Action):
    """The option ``--version``."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(describe())
        parser.exit()

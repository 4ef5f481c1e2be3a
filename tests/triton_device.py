"""Where the Triton tests run, and strips of the oracle's tensors in that device's memory.

test_triton_kernels.py starts the modules that import this one, each in a process of its own, since
Triton decides when it is imported whether it interprets: with TRITON_INTERPRET=1 here, and without
it on a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import oracle
from memory import CODES, Memory
from oracle import Float64, Words
from relex_ext.backends import Strips
from relex_ext.backends import triton_kernels as kernels
from relex_ext.backends.triton import TritonBackend

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda:0")

marks: Any = [] if INTERPRETED else [pytest.mark.gpu]
"""A module's pytestmark: conftest.py hides GPUs from what is not marked."""


def _interpret_faster() -> None:
    """Triton patches its whole language again for each call from one function to another, a
    millisecond each time. Once is enough: the functions all use the same module."""
    import triton.language as tl
    from triton.runtime import interpreter

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call
    interpreter._patch_lang(tl.max.fn)  # tl.core, which the standard library's functions use


if INTERPRETED:
    _interpret_faster()


def backend() -> TritonBackend:
    return TritonBackend(DEVICE)


GUARD = 192
"""Bytes around a strip that nobody may read a number from, or write."""


@dataclass
class Place:
    """A strip at an element-aligned address in the device's memory."""

    words: Words
    shift: int = 0
    """Elements from 64-byte alignment."""
    fill: int = 0xFF
    """Bytes around it: NaN in every dtype."""
    memory: torch.Tensor = field(init=False)
    start: int = field(init=False)

    def __post_init__(self) -> None:
        size = self.words.nbytes
        self.memory = torch.full((size + 2 * GUARD,), self.fill, dtype=torch.uint8, device=DEVICE)
        self.start = -self.memory.data_ptr() % 64 + self.shift * self.words.itemsize % 64
        raw = np.ascontiguousarray(self.words).view(np.uint8)
        self.memory[self.start : self.start + size] = torch.from_numpy(raw.copy()).to(DEVICE)

    @property
    def address(self) -> int:
        return int(self.memory.data_ptr()) + self.start

    def read(self) -> Words:
        """Its words now; what lies around them must be as it was."""
        found: NDArray[np.uint8] = self.memory.cpu().numpy()
        end = self.start + self.words.nbytes
        assert (found[: self.start] == self.fill).all(), "wrote before the strip"
        assert (found[end:] == self.fill).all(), "wrote behind the strip"
        return found[self.start : end].copy().view(self.words.dtype)


@dataclass
class Placed:
    """Columns of a Memory on the device. ``shift``: no two strips are aligned the same way."""

    memory: Memory
    begin: int = 0
    end: int | None = None
    shift: bool = False
    held: list[Place] = field(default_factory=list)

    def place(self, words: Words) -> int:
        cut = words[self.begin : self.memory.columns if self.end is None else self.end]
        self.held.append(Place(cut, len(self.held) + 1 if self.shift else 0))
        return self.held[-1].address

    @property
    def strips(self) -> Strips:
        memory = self.memory
        base = 0 if memory.base is None else self.place(memory.base)
        rows = [self.place(words) for words in memory.rows]
        columns = (memory.columns if self.end is None else self.end) - self.begin
        return Strips(
            np.array(rows, np.uint64),
            np.array([CODES[d] for d in memory.dtypes], np.uint8),
            base,
            CODES[memory.base_dtype],
            columns,
        )


Cuts = Sequence[tuple[int, int | None]]
WHOLE: Cuts = ((0, None),)


def gram_of(memory: Memory, cuts: Cuts = WHOLE, shift: bool = False, start: float = 0.0) -> Float64:
    """The full symmetric G. Its upper triangle must be left alone."""
    triton, rows = backend(), len(memory.rows)
    # −0: to add anything to it, even a zero, would change its sign.
    below = np.tri(rows, dtype=bool)
    sums = torch.from_numpy(np.where(below, start, -0.0)).to(DEVICE)
    for begin, end in cuts:
        placed = Placed(memory, begin, end, shift)
        with np.errstate(all="ignore"):
            triton.gram(placed.strips, sums)
            found = triton.fetch(sums)  # before the strips go
    assert (found[~below] == 0).all() and np.signbit(found[~below]).all()
    lower = np.tril(found)
    return lower + np.tril(lower, -1).T


def step(
    memory: Memory, u: NDArray[np.float32], cuts: Cuts = WHOLE, energy: bool = True,
    shift: bool = False, start: float = 0.0,
) -> tuple[Float64, Float64]:  # fmt: skip
    """y and, unless left out, ‖Δ_t‖²."""
    triton = backend()
    y, squares = triton.zeros(*u.shape) + start, triton.zeros(len(u)) + start
    for begin, end in cuts:
        placed = Placed(memory, begin, end, shift)
        with np.errstate(all="ignore"):
            triton.power_step(placed.strips, u, y, squares if energy else None)
            found = triton.fetch(y), triton.fetch(squares)
    return found


def combined(
    memory: Memory, weights: Float64, dtype: str, cut: tuple[int, int | None] = (0, None),
    shift: bool = False,
) -> list[Words]:  # fmt: skip
    """Each target's words."""
    placed = Placed(memory, *cut, shift)
    strips = placed.strips
    blank = np.full(strips.columns, 0xA5A5, oracle.WORD[dtype])
    out = [Place(blank, q + 3 if shift else 0, fill=0x5A) for q in range(len(weights))]
    addresses = np.array([place.address for place in out], np.uint64)
    triton = backend()
    with np.errstate(all="ignore"):
        triton.combine(strips, weights, addresses, CODES[dtype])
    triton.fetch(triton.zeros(1))
    return [place.read() for place in out]


__all__ = [
    "DEVICE", "INTERPRETED", "Place", "Placed", "backend", "combined", "gram_of", "kernels",
    "marks", "step",
]  # fmt: skip

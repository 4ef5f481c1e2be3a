"""Blocks of an output computed again from its inputs, in float64, by the definition.

The last bits of two computations are not compared. The kernels' sums are in fp32 where the output
has 16 bits and in fp64 where it is F32. Of n terms, which are rounded themselves, such a sum is
within (n + 3) u Σ|w_t Δ_t| of the exact one, in whatever order, u being the unit roundoff. An
element agrees if it is the rounding of a number that near: nearly everywhere no rounding boundary
lies between, and that is equality; where a sum cancels, it allows for what cancelled.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from relex_ext.adapters.definition import movement_of
from relex_ext.adapters.trajectory import LowRank
from relex_ext.applied import read_weights
from relex_ext.dtypes import converted, from_float64, to_float32
from relex_ext.errors import InputError
from relex_ext.files import Files, allow_many_files, extents
from relex_ext.headers import TensorEntry
from relex_ext.identities import identities_of
from relex_ext.inputs import open_inputs
from relex_ext.output import WEIGHTS
from relex_ext.trajectory import Tensor, Trajectory
from relex_ext.verifying.noted import Noted

COLUMNS = 4096
"""Of a block; a tensor's last one has what is left."""

ROUNDOFF = {"F32": 2.0**-52, "F16": 2.0**-24, "BF16": 2.0**-24}
"""u of the sums behind an output's dtype; fp64's twice, for the sums here are no better."""

LEAST = 2.0**-126
"""The smallest normal fp32 number: beside smaller terms it decides what rounding loses."""

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Block:
    """Columns [begin, end) of a tensor, ``written`` for a target."""

    target: str
    tensor: Tensor
    written: TensorEntry
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Of the base and all rows."""
        return self.tensor.nbytes * (self.end - self.begin) // self.tensor.columns


class Samples:
    """Compares blocks of an output with what its inputs give."""

    def __init__(self, noted: Noted, progress: bool = False) -> None:
        """Opens the inputs, fetches them where they are on the Hub.

        Raises:
            InputError: they are gone, or others than they were, or a search has kept the forecast
                and not its weights.
        """
        if WEIGHTS not in noted.files:
            raise InputError(f"{noted.out}: expected {WEIGHTS} to compute samples with, found none")
        self._noted = noted
        self.trajectory = _open_inputs(noted, progress)
        self._row = {target: i for i, target in enumerate(noted.targets)}
        self._files = Files(mapped=False)

    def choose(
        self, targets: Mapping[str, Mapping[str, TensorEntry]], samples: int, seed: int
    ) -> list[Block]:
        """So many different blocks of all ``targets``, each as likely as any other, in the order
        in which they lie; all where there are no more.

        Raises:
            InputError: the output and its weights do not fit the inputs.
        """
        self._weights = read_weights(self._noted.out / WEIGHTS)
        self._check_weights()
        pairs = [
            (target, tensor, self._entry_of(target, tensor, entries))
            for target, entries in targets.items()
            for tensor in self.trajectory.tensors
        ]
        ends = [0, *accumulate(-(-tensor.columns // COLUMNS) for _, tensor, _ in pairs)]
        blocks = []
        for i in sorted(random.Random(seed).sample(range(ends[-1]), min(samples, ends[-1]))):
            at = bisect_right(ends, i) - 1
            begin = (i - ends[at]) * COLUMNS
            end = min(begin + COLUMNS, pairs[at][1].columns)
            blocks.append(Block(*pairs[at], begin, end))
        allow_many_files()
        return blocks

    def compare(self, block: Block) -> str | None:
        """What is wrong with a block. From any thread."""
        tensor, written = block.tensor, block.written
        found = self._strips([written], block)[0]
        if tensor.trained and tensor.name not in self._noted.carried:
            agree = self._agree(block, found)
        else:
            source = tensor.rows[-1] if tensor.trained else tensor.base
            copied = converted(
                self._strips([source], block)[0].tobytes(), source.dtype, written.dtype
            )
            same = np.frombuffer(copied, np.uint8) == found
            agree = same.reshape(block.end - block.begin, -1).all(axis=1)
        wrong = agree.size - np.count_nonzero(agree)
        if not wrong:
            return None
        return (
            f"{written.shard.path}: tensor {tensor.name}: {wrong} of its elements {block.begin} to "
            f"{block.end - 1} are not what the inputs give"
        )

    def _check_weights(self) -> None:
        noted, weights = self._noted, self._weights
        place = noted.out / WEIGHTS
        expected = tuple(noted.checkpoints), tuple(noted.targets.values())
        if (weights.steps, weights.targets) != expected:
            raise InputError(f"{place}: expected the steps and targets of relex.json, found others")
        for tensor in self.trajectory.trained:
            if tensor.name not in noted.carried and tensor.name not in weights.tensors:
                raise InputError(f"{place}: tensor {tensor.name}: missing")

    def _entry_of(
        self, target: str, tensor: Tensor, entries: Mapping[str, TensorEntry]
    ) -> TensorEntry:
        folder, newest = self._noted.models[target].folder, tensor.rows[-1]
        if tensor.name not in entries:
            raise InputError(f"{folder}: tensor {tensor.name}: missing")
        found = entries[tensor.name]
        dtype = (self._noted.dtype or newest.dtype) if tensor.trained else newest.dtype
        if (found.dtype, found.shape) != (dtype, tensor.shape):
            raise InputError(
                f"{folder}: tensor {tensor.name}: expected {dtype} {list(tensor.shape)}, "
                f"found {found.dtype} {list(found.shape)}"
            )
        return found

    def _agree(self, block: Block, found: NDArray[np.uint8]) -> NDArray[np.bool_]:
        tensor, dtype = block.tensor, block.written.dtype
        tables = self._weights.tensors[tensor.name]
        used = np.flatnonzero(tables.any(axis=0)).tolist()  # others were not read, NaN or not
        w = tables[self._row[block.target], used]
        if isinstance(tensor, LowRank):
            return self._agree_low_rank(block, found, tables[self._row[block.target]])
        entries = [tensor.base, *(tensor.rows[t] for t in used)]
        strips = zip(self._strips(entries, block), entries, strict=True)
        base, *rows = (to_float32(s, e.dtype).astype(np.float64) for s, e in strips)
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and Inf pass through
            exact, slack = self._exact(base, rows, w.tolist(), dtype)
            return _within(to_float32(found, dtype), exact, slack, dtype)

    def _agree_low_rank(
        self, block: Block, found: NDArray[np.uint8], weights: Float64
    ) -> NDArray[np.bool_]:
        tensor, dtype = block.tensor, block.written.dtype
        assert isinstance(tensor, LowRank)
        strip = self._strips([tensor.base], block)[0]
        base = to_float32(strip, tensor.base.dtype).astype(np.float64)
        moved, moves, terms = movement_of(tensor, weights, self._files, block.begin, block.end)
        with np.errstate(invalid="ignore", over="ignore"):
            exact = base + moved
            slack = (terms + 3) * ROUNDOFF[dtype] * (moves + LEAST)
            slack += ROUNDOFF["F32"] * np.abs(exact)
            return _within(to_float32(found, dtype), exact, slack, dtype)

    def _exact(
        self, base: Float64, rows: Sequence[Float64], w: Sequence[float], dtype: str
    ) -> tuple[Float64, Float64]:
        """base + Σ_t w_t Δ_t, and how far from it the kernels' sum may be."""
        moved, moves = np.zeros_like(base), np.zeros_like(base)
        start = self._rounded(base)
        for weight, row in zip(w, rows, strict=True):
            term = weight * self._rounded(self._rounded(row) - start)
            moved += term
            moves += np.abs(term)
        exact = base + moved
        slack = (len(rows) + 3) * ROUNDOFF[dtype] * (moves + LEAST)
        return exact, slack + ROUNDOFF["F32"] * np.abs(exact)

    def _rounded(self, values: Float64) -> Float64:
        return values.astype(np.float16).astype(np.float64) if self._noted.half else values

    def _strips(self, entries: Sequence[TensorEntry], block: Block) -> list[NDArray[np.uint8]]:
        """A block's bytes in each of a tensor's files."""
        offsets, lengths = extents(entries, block.begin, block.end)
        strips = [np.empty(length, np.uint8) for length in lengths.tolist()]
        places = np.array([strip.ctypes.data for strip in strips], np.uint64)
        self._files.read(block.tensor.name, entries, (offsets, lengths), places)
        return strips


def _open_inputs(noted: Noted, progress: bool) -> Trajectory:
    steps = noted.checkpoints.items()
    trajectory = open_inputs(noted.base, noted.checkpoints, least=1, progress=progress)
    folders = {"base": noted.base} | {str(step): folder for step, folder in steps}
    for key, found in identities_of(trajectory).items():
        if noted.identities.get(key) != found:
            raise InputError(
                f"{folders[key]}: expected the files that {noted.out} was made from, found others"
            )
    return trajectory


def _within(
    found: NDArray[np.float32], exact: Float64, slack: Float64, dtype: str
) -> NDArray[np.bool_]:
    """Which are the rounding of a number within ``slack`` of ``exact``."""
    low, high = (
        to_float32(from_float64(bound, dtype), dtype) for bound in (exact - slack, exact + slack)
    )
    return ((low <= found) & (found <= high)) | ~(np.isfinite(exact) | np.isfinite(found))

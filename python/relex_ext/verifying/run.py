"""Whether an output still is what was written, and what its inputs give."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from relex_ext.backends.cpu import CpuBackend
from relex_ext.engine import Tick
from relex_ext.errors import InputError, printable
from relex_ext.progress import ProgressBar
from relex_ext.steps import PathLike
from relex_ext.verifying.noted import read_record
from relex_ext.verifying.reading import Reader
from relex_ext.verifying.samples import Block, Samples
from relex_ext.verifying.shards import Contents, recorded


@dataclass(frozen=True)
class Verification:
    """What was found of an output. ``models``, ``tensors`` and ``files`` that were checked, their
    ``bytes``, and ``samples``, the blocks that were computed again; ``damages``: a line each."""

    out: Path
    models: int
    tensors: int
    files: int
    bytes: int
    samples: int
    damages: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.damages


def verify(
    out: PathLike,
    *,
    samples: int = 0,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = True,
) -> Verification:
    """Read an output again: every byte against the digests in its relex.json, every header by the
    rules that inputs have to meet. Model cards may have been edited. Nothing is written.

    Args:
        out: what :func:`extrapolate` or :func:`combine` wrote, or a forecast that a search kept.
        samples: where all bytes are as written, compute so many blocks of up to 4096 elements
            again in float64, from the inputs, which have to be as they were.
        seed: of the choice of blocks.
        threads: that read; by default every processor this process may use.
        progress: show a progress bar.

    Raises:
        InputError: ``out`` is no output, its relex.json is damaged, or there are samples to be
            computed and not the inputs or the weights for it.
    """
    if samples < 0:
        raise InputError(f"samples: expected 0 or more, found {samples}")
    threads = CpuBackend(threads).threads
    noted = read_record(Path(out))
    sampling = Samples(noted, progress) if samples else None
    files = recorded(noted)
    nbytes = sum(file.path.stat().st_size for file in files if file.path.is_file())
    with ProgressBar(nbytes, "verify", progress) as tick:
        contents = Contents(noted, Reader(threads, tick))
        contents.check()
    damages, compared = contents.damages, 0
    if sampling is not None and not damages:
        blocks = sampling.choose(contents.entries, samples, seed)
        compared = len(blocks)
        with ProgressBar(sum(block.nbytes for block in blocks), "samples", progress) as tick:
            damages = Reader(threads, tick).each(partial(_compare, sampling, tick), blocks)
        sampling.trajectory.check_unchanged()
    return Verification(
        noted.out, len(noted.models), sum(map(len, contents.entries.values())), len(files), nbytes,
        compared, tuple(printable(line.removeprefix(f"{noted.out}/")) for line in damages),
    )  # fmt: skip


def _compare(sampling: Samples, tick: Tick, block: Block) -> str | None:
    found = sampling.compare(block)
    tick(block.nbytes)
    return found

"""Scan and extrapolate with nothing in the page cache, against the fastest way to read the files.

The cache is dropped before every run (root only). The limit is the best of plain readers of the
same files in the same rounds: read() in 4 MiB pieces, one file per thread at a time; mmap with
MADV_SEQUENTIAL, summed; O_DIRECT preads of 4 MiB. Readers run in this process, ours as whole
processes whose interpreter and libraries are cold too (shown apart as start-up). Verified: every
reader sees every byte, and before that, both io modes write the same bits.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import common

PIECE = 4 << 20
PART = 64 << 20
"""What a thread takes of a file at a time, where threads share files."""

START_UP = "relex start-up alone (import)"

Reader = Callable[[Path, int, int], int]


def read_plain(path: Path, begin: int, end: int) -> int:
    """read() from begin to end; the bytes it saw."""
    buffer = bytearray(PIECE)
    seen = 0
    with path.open("rb", buffering=0) as file:
        file.seek(begin)
        while begin + seen < end and (got := file.readinto(buffer)):
            seen += got
    return seen


def read_mapped(path: Path, begin: int, end: int) -> int:
    """Every page touched by a sum at memory speed."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        mapped.madvise(mmap.MADV_SEQUENTIAL)
        whole = (end - begin) // 8
        words = np.frombuffer(mapped, np.uint64, whole, begin)
        for i in range(0, whole, PIECE // 8):
            words[i : i + PIECE // 8].sum()
        del words
        return 8 * whole + len(mapped[begin + 8 * whole : end])


def read_direct(path: Path, begin: int, end: int) -> int:
    """O_DIRECT into one aligned buffer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    seen = 0
    try:
        with mmap.mmap(-1, PIECE) as buffer:
            while begin + seen < end and (got := os.preadv(descriptor, [buffer], begin + seen)):
                seen += got
    finally:
        os.close(descriptor)
    return min(seen, end - begin)


def whole_files(paths: Sequence[Path]) -> list[tuple[Path, int, int]]:
    return [(path, 0, path.stat().st_size) for path in paths]


def parts(paths: Sequence[Path]) -> list[tuple[Path, int, int]]:
    return [
        (path, begin, min(begin + PART, end))
        for path, _, end in whole_files(paths)
        for begin in range(0, end, PART)
    ]


def read_all(
    read: Reader, work: Sequence[tuple[Path, int, int]], threads: int
) -> tuple[float, int]:
    """Seconds, and bytes seen, of threads that take the pieces in turn."""
    todo: queue.SimpleQueue[tuple[Path, int, int]] = queue.SimpleQueue()
    for piece in work:
        todo.put(piece)
    seen: list[int] = []
    failed: list[BaseException] = []

    def loop() -> None:
        try:
            while True:
                seen.append(read(*todo.get_nowait()))
        except queue.Empty:
            pass
        except BaseException as error:
            failed.append(error)

    workers = [threading.Thread(target=loop) for _ in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failed:
        raise failed[0]
    return time.perf_counter() - start, sum(seen)


def digest(folder: Path) -> str:
    """Of the model files in a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("model*.safetensors")):
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                found.update(piece)
    return found.hexdigest()


def main() -> None:
    parser = common.parser(__doc__, load=True)
    parser.add_argument("--target", type=float, default=60, help="the step to forecast")
    parser.add_argument("--work", type=Path, help="a folder for outputs (beside the load)")
    args = parser.parse_args()
    load = args.load.resolve()
    paths = common.shards(load)
    size = common.total_size(paths)
    readers: dict[str, tuple[Reader, list[tuple[Path, int, int]], int]] = {}
    for threads in (1, 2, 4, 8):
        readers[f"read(), {threads} threads"] = (read_plain, whole_files(paths), threads)
    for threads in (1, 4):
        readers[f"mmap sequential, {threads} threads"] = (read_mapped, whole_files(paths), threads)
    for threads in (1, 4, 8):
        readers[f"O_DIRECT, {threads} threads"] = (read_direct, parts(paths), threads)
    common.drop_caches()

    with common.scratch_folder(args.work or load.parent) as work:
        out = work / "out"

        def reading(name: str) -> float:
            read, pieces, threads = readers[name]
            common.drop_caches()
            seconds, seen = read_all(read, pieces, threads)
            common.say(f"{name}: {seconds:.2f} s")
            if seen != size:
                common.fail(f"{name}: saw {seen} bytes of {size}")
            return seconds

        def ours(verb: str, io: str) -> float:
            common.remove(out)
            target = ["--target-step", args.target] if verb == "extrapolate" else []
            common.drop_caches()
            done = common.child(common.relex(verb, load, out, "--io", io, *target))
            if done.code != 0:
                common.fail(f"{verb} --io {io}: {done.reason}")
            common.say(f"{verb} {io}: {done.wall:.2f} s")
            return done.wall

        digests = set()
        for io in ("mmap", "pread"):
            ours("extrapolate", io)
            digests.add(digest(out))
        if len(digests) != 1:
            common.fail("mmap and pread write different bits")

        def start_up() -> float:
            common.drop_caches()
            return common.child(common.python("-c", "import relex_ext.pipeline")).wall

        cases: dict[str, Callable[[], float]] = {}
        for name in readers:
            cases[name] = partial(reading, name)
        cases[START_UP] = start_up
        for verb in ("scan", "extrapolate"):
            for io in ("mmap", "pread"):
                cases[f"relex {verb}, {io}"] = partial(ours, verb, io)
        times = common.interleaved(cases, args.runs)
    best = min((times[name].median, name) for name in readers)
    rows: list[list[str]] = []
    results: dict[str, Any] = {}
    for name, seconds in times.items():
        if name == START_UP:
            rows.append([name, seconds.text(), "", ""])
            results[name] = {"seconds": seconds.json()}
            continue
        rate = seconds.rate(size / 1e9)
        share = best[0] / seconds.median
        rows.append([name, seconds.text(), rate.text(), f"{share:.0%}"])
        results[name] = {
            "seconds": seconds.json(), "gb_per_s": rate.json(), "share_of_best_reader": share,
        }  # fmt: skip
    notes = [f"{len(paths)} files, {size / 1e9:.2f} GB; the best reader: {best[1]}"]
    common.report(args, ["case", "seconds", "GB/s", "of the best reader"], rows, results, notes)


if __name__ == "__main__":
    main()

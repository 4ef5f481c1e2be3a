"""Peak memory of extrapolate under a memory limit, and whether it writes anything but its output.

Peak is the process's VmHWM: everything resident, mapped pages of the shards included. Asserted:
peak ≤ limit + --slack in every case; the same bits whatever the limit; nothing left beside the
output or in the temporary folder; bytes given to the file system ≤ the output's (+ 1 % + 4 MB).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import common
from bench_cold import digest
from common import Child
from relex_ext.plan import parse_bytes

MIB = 1 << 20


def main() -> None:
    parser = common.parser(__doc__, load=True)
    parser.add_argument(
        "--limits", type=common.words, default="64MiB,256MiB,1GiB,4GiB", help="memory limits"
    )
    parser.add_argument("--target", type=float, default=60, help="the step to forecast")
    parser.add_argument("--slack", type=common.number, default="3e8", help="bytes, interpreter's")
    parser.add_argument("--work", type=Path, help="a folder for outputs (beside the load)")
    args = parser.parse_args()
    load = args.load.resolve()
    paths = common.shards(load)
    size = common.total_size(paths)
    common.warm(paths)
    digests: set[str] = set()
    children: dict[str, list[Child]] = {}
    with common.scratch_folder(args.work or load.parent) as work:
        out, temporary = work / "out", work / "tmp"
        temporary.mkdir()

        def case(limit: str, io: str) -> float:
            common.remove(out)
            options = ["--memory-limit", limit, "--io", io, "--solver", "gram"]
            argv = common.relex("extrapolate", load, out, "--target-step", args.target, *options)
            done = common.child(argv, env={"TMPDIR": str(temporary)})
            name = f"{limit}, {io}"
            common.say(f"{name}: {done.wall:.2f} s, {done.peak / MIB:.0f} MiB")
            if done.code != 0:
                common.fail(f"{name}: {done.reason}")
            if done.peak > parse_bytes(limit) + args.slack:
                common.fail(f"{name}: peak {done.peak / MIB:.0f} MiB")
            left = sorted(p.name for p in [*work.iterdir(), *temporary.iterdir()])
            if left != ["out", "tmp"]:
                common.fail(f"{name}: files beside the output: {left}")
            written = common.total_size([p for p in out.rglob("*") if p.is_file()])
            if done.wrote > 1.01 * written + 4e6:
                common.fail(f"{name}: wrote {done.wrote} bytes for an output of {written}")
            digests.add(digest(out))
            if len(digests) != 1:
                common.fail(f"{name}: other bits than under the first limit")
            children.setdefault(name, []).append(done)
            return done.wall

        cases = {
            f"{limit}, {io}": partial(case, limit, io)
            for limit in args.limits
            for io in ("mmap", "pread")
        }
        times = common.interleaved(cases, args.runs)
        output = common.total_size([p for p in out.rglob("*") if p.is_file()])
    rows, results = [], {}
    for name, seconds in times.items():
        limit = parse_bytes(name.split(",")[0])
        peak = max(done.peak for done in children[name])
        wrote = max(done.wrote for done in children[name])
        over = (peak - limit) / MIB
        rows.append(
            [name, f"{peak / MIB:.0f}", f"{over:+.0f}", f"{wrote / MIB:.0f}", seconds.text(),
             f"{seconds.rate(size / 1e9).median:.2f}"]
        )  # fmt: skip
        results[name] = {"peak_bytes": peak, "limit_bytes": limit, "written_bytes": wrote,
                         "seconds": seconds.json()}  # fmt: skip
    heads = ["limit, io", "peak MiB", "over the limit", "written MiB", "wall s", "GB/s of shards"]
    notes = [f"shards {size / MIB:.0f} MiB, output {output / MIB:.0f} MiB"]
    common.report(args, heads, rows, results, notes)


if __name__ == "__main__":
    main()

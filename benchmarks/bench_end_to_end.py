"""A whole forecast, from starting the interpreter to the synced checkpoint, against its peers.

Ours runs twice, once within about the memory that the numpy peer takes: unlimited it reads ahead
into half of what is free. The shards are in the page cache, outputs are removed between runs.
Verified first: ours and the numpy peer's give the same bf16 bits in at least 99.9 % of all elements
(the authors' way goes through fp16 deltas; its agreement is printed).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import common
from common import Child
from relex_ext.sizes import available_memory

GIB = 1 << 30
AGREE = 0.999
NAMES = {
    "ours": "ours",
    "limited": "ours, limited",
    "numpy": "published algorithm, numpy",
    "authors": "authors' pipeline, torch",
    "dense": "the same with a dense SVD",
}


def commands(
    load: Path, target: float, work: Path, limit: str
) -> dict[str, tuple[list[str], Path]]:
    """case → (command line, the model file it writes)."""
    peers = common.HERE / "peers"
    ours, numpy, authors = work / "ours", work / "numpy.safetensors", work / "authors.safetensors"
    scratch = work / "scratch"
    step = ["--target-step", target]
    model = ours / f"step_{target:g}" / "model.safetensors"
    theirs = common.python(peers / "authors_pipeline.py", load, target, authors, scratch)
    return {
        "ours": (common.relex("extrapolate", load, ours, *step), model),
        "limited": (
            common.relex("extrapolate", load, ours, *step, "--memory-limit", limit),
            model,
        ),
        "numpy": (common.python(peers / "published_numpy.py", load, target, numpy), numpy),
        "authors": (theirs, authors),
        "dense": ([*theirs, "dense"], authors),
    }


def main() -> None:
    parser = common.parser(__doc__, load=True)
    parser.add_argument("--target", type=float, default=60, help="the step to forecast")
    parser.add_argument("--peers", type=common.words, default="numpy,authors")
    parser.add_argument("--memory-limit", default="512MiB", help="of ours, limited")
    parser.add_argument("--dense-runs", type=int, default=1, help="of --runs; they take long")
    parser.add_argument("--limit", type=float, default=1800, help="seconds a peer may take")
    parser.add_argument("--work", type=Path, help="a folder for outputs (beside the load)")
    args = parser.parse_args()
    load = args.load.resolve()
    paths = common.shards(load)
    size = common.total_size(paths)
    memory = available_memory() * 9 // 10  # a peer that wants more gives up; the machine goes on
    fewer = {"dense": args.dense_runs}
    with common.scratch_folder(args.work or load.parent) as work:
        known = commands(load, args.target, work, args.memory_limit)
        if not set(args.peers) <= set(known):
            parser.error(f"--peers: expected some of numpy, authors, dense, found {args.peers}")
        cases = {name: known[name] for name in ("ours", "limited", *args.peers)}
        scratch_bytes = dict.fromkeys(cases, 0)
        children: dict[str, list[Child]] = {name: [] for name in cases}

        def run(name: str) -> Child:
            for path in work.iterdir():
                common.remove(path)
            (work / "scratch").mkdir()
            common.warm(paths)  # a peer before may have driven them out
            done = common.child(cases[name][0], args.limit, memory=memory)
            files = [p for p in (work / "scratch").rglob("*") if p.is_file()]
            scratch_bytes[name] = max(scratch_bytes[name], common.total_size(files))
            common.say(f"{name}: {done.wall:.2f} s" if done.code == 0 else f"{name}: {done.reason}")
            return done

        agree, gave_up = verify(cases, run, work)
        for name in [name for name in cases if name != "ours" and name not in agree]:
            del cases[name]

        def timed(name: str) -> Callable[[], float]:
            def case() -> float:
                done = run(name)
                if done.code != 0:
                    common.fail(f"{name}: {done.reason}")
                children[name].append(done)
                return done.wall

            return case

        times = common.interleaved({name: timed(name) for name in cases}, args.runs, fewer)
    rows, results = [], {}
    for name, wall in times.items():
        peak = max(done.peak for done in children[name])
        ratio = wall.median / times["ours"].median
        rate = wall.rate(size / 1e9)
        rows.append(
            [NAMES[name], wall.text(), rate.text(), f"{peak / GIB:.2f}",
             f"{scratch_bytes[name] / GIB:.2f}", f"{ratio:.2f}×",
             "–" if name == "ours" else f"{agree[name]:.4%}"]
        )  # fmt: skip
        results[name] = {
            "seconds": wall.json(), "gb_per_s": rate.json(), "peak_bytes": peak,
            "scratch_bytes": scratch_bytes[name], "times_ours": ratio, "agreement": agree.get(name),
        }  # fmt: skip
    heads = ["case", "wall s", "GB/s of shards", "peak GiB", "scratch GiB", "time / ours", "agrees"]
    common.report(
        args, heads, rows, results, [f"{len(paths)} files, {size / 1e9:.2f} GB", *gave_up]
    )


def verify(
    cases: dict[str, tuple[list[str], Path]], run: Callable[[str], Child], work: Path
) -> tuple[dict[str, float], list[str]]:
    """The cases that finish, with the share of elements in which each agrees with ours; and a line
    for each peer that does not."""
    kept = work.parent / f"{work.name}-ours.safetensors"
    agree, gave_up = {}, []
    try:
        for name, (_, written) in cases.items():
            done = run(name)
            if done.code != 0 and name not in ("authors", "dense"):
                common.fail(f"{name}: {done.reason}")
            if done.code != 0:  # it may need more memory than there is
                gave_up.append(f"{NAMES[name]}: gave up after {done.wall:.0f} s: {done.reason}")
            elif name == "ours":
                written.rename(kept)
            else:
                agree[name] = common.agreement(kept, written)
    finally:
        kept.unlink(missing_ok=True)
    for name in ("limited", "numpy"):
        if agree.get(name, 1.0) < AGREE:
            common.fail(f"{name}: agrees with ours in {agree[name]:.4%} of elements only")
    return agree, gave_up


if __name__ == "__main__":
    main()

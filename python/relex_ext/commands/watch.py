"""``relex watch``: the verdict on a run, line by line, while it trains."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from relex_ext.commands import Notes

if TYPE_CHECKING:
    from relex_ext.commands import Commands
    from relex_ext.integrations.watch import Watch


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "watch", help="say while a run trains what a forecast of it would be"
    )
    parser.add_argument("run", metavar="RUN", help="the folder in which step folders appear")
    parser.add_argument("--base", required=True, metavar="DIR", help="the model the run began with")
    parser.add_argument(
        "--scan", metavar="FILE",
        help="where the scan is kept, for extrapolate --scan (RUN/relex/scan.safetensors)",
    )  # fmt: skip
    parser.add_argument(
        "--target-step", type=float, metavar="STEP", help="the step that the verdict is about"
    )
    parser.add_argument("--once", action="store_true", help="say it once, and end")
    parser.add_argument(
        "--every", type=float, default=10.0, metavar="SECONDS",
        help="between two looks at the folder (10)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="(all processors)")
    parser.add_argument("--memory-limit", metavar="SIZE", help="like 2GiB (half of the free one)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(args: argparse.Namespace, notes: Notes) -> None:
    from relex_ext.errors import InputError, Interrupted
    from relex_ext.integrations.watch import Watch

    if not Path(args.run).is_dir():
        raise InputError(f"{args.run}: expected a folder of checkpoints, found no folder")
    watch = Watch(
        args.base, args.run, file=args.scan, threads=args.threads, memory_limit=args.memory_limit
    )
    try:
        watch.catch_up()
        if watch.steps or args.once:
            _say(watch, args, notes)
        while not args.once:
            time.sleep(args.every)
            if watch.catch_up():
                _say(watch, args, notes)
    except KeyboardInterrupt:
        raise Interrupted(f"the scan of {len(watch.steps)} steps is in {watch.file}") from None


def _say(watch: Watch, args: argparse.Namespace, notes: Notes) -> None:
    standing = watch.standing(args.target_step)
    for line in notes.lines:
        print(f"relex: {line}", file=sys.stderr)
    notes.lines.clear()
    print(json.dumps(standing.logs()) if args.json else standing, flush=True)

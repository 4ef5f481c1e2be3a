"""`make demo`: forecast step 200 of a real GRPO run from its first 50 steps, and score it.

Unpacks the shipped run, runs `relex extrapolate` on a prefix of it, and scores four models on the
same held-out problems: the base, the newest checkpoint of the prefix, the forecast, and the
checkpoint that was really trained to the target step.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from pack import unpack
from score import score, standard_error

PREFIX, TARGET = 50, 200


def run(command: list[str]) -> None:
    """Show a command as a user would type it, then run it."""
    print("$ " + shlex.join(["relex", *command]), flush=True)
    subprocess.run([sys.executable, "-m", "relex_ext", *command], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"), help="where to work")
    parser.add_argument("--until", type=int, default=PREFIX, help="newest step the forecast sees")
    parser.add_argument("--target", type=int, default=TARGET, help="step to forecast, at most 200")
    parser.add_argument("--problems", type=int, default=4000)
    args = parser.parse_args()

    for part in ("run", "forecast"):  # of an earlier demo; nothing else in the folder is touched
        shutil.rmtree(args.folder / part, ignore_errors=True)
    args.folder.mkdir(parents=True, exist_ok=True)
    print(f"Unpacking a real GRPO run (Qwen2, 334,656 parameters, 200 steps) to {args.folder}")
    trained = unpack(args.folder / "run")
    forecast = args.folder / "forecast"
    run(["extrapolate", "--base", str(trained / "base"), "--checkpoints", str(trained),
         "--until", str(args.until), "--target-step", str(args.target),
         "--out", str(forecast)])  # fmt: skip

    models = {
        "base (step 0)": trained / "base",
        f"newest of the prefix (step {args.until})": trained / f"checkpoint-{args.until}",
        f"forecast of step {args.target}": forecast / f"step_{args.target}",
        f"really trained to step {args.target}": trained / f"checkpoint-{args.target}",
    }
    print(f"\nScoring {len(models)} models on {args.problems} held-out additions, greedy …")
    print(f"\n{'model':34}{'accuracy':>10}{'std. error':>12}")
    for name, folder in models.items():
        accuracy = score(folder, args.problems)
        error = standard_error(accuracy, args.problems)
        print(f"{name:34}{accuracy:>10.3f}{error:>12.3f}", flush=True)
    print(f"\nThe forecast saw steps 1 to {args.until} only. The model is in {forecast}.")


if __name__ == "__main__":
    main()

"""`make demo`: forecast step 200 of a real GRPO run from its first 50 steps, score it, and report.

Unpacks the shipped run, runs `relex extrapolate` on a prefix of it, and scores four models on the
same held-out problems: the base, the newest checkpoint of the prefix, the forecast, and the
checkpoint that was really trained to the target step. Then it writes what the paper's two figures
need, rank-1 reconstructions of observed steps and forecasts from several prefixes, scores those,
too, and ends with `relex report`: one page with the verdict and every figure.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from pack import unpack
from relex_ext.scores import Score, write_scores
from score import score, standard_error

PREFIX, TARGET, LAST = 50, 200, 200
OBSERVED = range(20, LAST + 1, 20)
FORECASTS = {25: (50, 75, 100, 150), 50: (75, 100, 150, 200), 100: (125, 150, 200, 250)}
"""Prefix → the steps forecast from it, for the page."""


def run(command: list[str]) -> None:
    """Show a command as a user would type it, then run it."""
    print("$ " + shlex.join(["relex", *command]), flush=True)
    subprocess.run([sys.executable, "-m", "relex_ext", *command], check=True)


def targets(steps: Iterable[int]) -> list[str]:
    return [part for step in steps for part in ("--target-step", str(step))]


def table(models: dict[str, Path], problems: int) -> None:
    """Accuracy of each model."""
    print(f"\nScoring {len(models)} models on {problems} held-out additions, greedy …")
    print(f"\n{'model':34}{'accuracy':>10}{'std. error':>12}")
    for name, folder in models.items():
        accuracy = score(folder, problems)
        error = standard_error(accuracy, problems)
        print(f"{name:34}{accuracy:>10.3f}{error:>12.3f}", flush=True)


def figures(trained: Path, work: Path, problems: int) -> Path:
    """Write and score the models behind the page's last figure; returns their scores."""
    inputs = ["--base", str(trained / "base"), "--checkpoints", str(trained)]
    scan = work / "figures.scan"
    for name in ("rank1", *(f"from{prefix}" for prefix in FORECASTS)):
        shutil.rmtree(work / name, ignore_errors=True)
    scan.unlink(missing_ok=True)
    run(["scan", *inputs, "--out", str(scan), "-q"])
    again = [*inputs, "--scan", str(scan), "-q"]
    run(["extrapolate", *again, "--method", "reconstruct", *targets(OBSERVED),
         "--out", str(work / "rank1")])  # fmt: skip
    for prefix, steps in FORECASTS.items():
        run(["extrapolate", *again, "--until", str(prefix), *targets(steps),
             "--out", str(work / f"from{prefix}")])  # fmt: skip
    print("\nScoring them …", flush=True)
    found = []

    def add(kind: str, step: int, folder: Path, prefix: int | None, method: str | None) -> None:
        accuracy = score(folder, problems)
        strength = None if method is None else 1.0
        error = standard_error(accuracy, problems)
        found.append(Score(kind, prefix, step, method, strength, accuracy, error))

    add("trained", 0, trained / "base", None, None)
    for step in OBSERVED:
        add("trained", step, trained / f"checkpoint-{step}", None, None)
        add("reconstruction", step, work / "rank1" / f"step_{step}", LAST, "reconstruct")
    for prefix, steps in FORECASTS.items():
        for step in steps:
            add("forecast", step, work / f"from{prefix}" / f"step_{step}", prefix, "relex")
    scores = work / "scores.csv"
    write_scores(scores, found)
    return scores


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
    table(models, args.problems)
    print(f"\nThe forecast saw steps 1 to {args.until} only. The model is in {forecast}.\n")

    scores = figures(trained, args.folder, args.problems)
    page = args.folder / "report.html"
    run(["report", str(forecast / "scan.safetensors"), "--eval", str(scores),
         "--target-step", str(args.target), "--out", str(page), "--overwrite"])  # fmt: skip
    print(f"\nOpen {page}: the verdict, and the figures behind it.")


if __name__ == "__main__":
    main()

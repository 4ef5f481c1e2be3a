"""The real GRPO runs behind the verdict's limits: which there are, and how they are trained.

Learning rate × batch × length, from ones that hardly move to ones that collapse, each of
examples/tiny_grpo/train.py. Limits are fitted to the runs of seed 0 and tested on those of seeds 1
and 2, which start from bases of their own.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "tiny_grpo"


@dataclass(frozen=True)
class Regime:
    lr: float
    prompts: int
    generations: int
    steps: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.lr:g}_{self.prompts}x{self.generations}_{self.steps}_seed{self.seed}"

    @property
    def fitted(self) -> bool:
        """The limits may be fitted to it."""
        return self.seed == 0


REGIMES = (
    Regime(7.5e-7, 64, 16, 200, 0), Regime(1.5e-6, 64, 16, 200, 0), Regime(3e-6, 64, 16, 200, 0),
    Regime(1e-5, 64, 16, 120, 0), Regime(1.5e-6, 16, 8, 200, 0), Regime(6e-6, 32, 8, 200, 0),
    Regime(1e-5, 32, 8, 150, 0), Regime(3e-5, 32, 8, 150, 0), Regime(1e-4, 32, 8, 150, 0),
    Regime(3e-4, 32, 8, 80, 0), Regime(1e-3, 32, 8, 100, 0),
    Regime(1e-6, 64, 16, 200, 1), Regime(2e-6, 64, 16, 200, 1), Regime(5e-6, 64, 16, 150, 1),
    Regime(1e-5, 64, 16, 120, 1), Regime(3e-6, 16, 8, 200, 1), Regime(1.5e-5, 32, 8, 150, 1),
    Regime(5e-5, 32, 8, 120, 1), Regime(3e-4, 32, 8, 80, 1), Regime(1e-3, 32, 8, 60, 1),
    Regime(1.5e-6, 64, 16, 200, 2), Regime(4e-6, 32, 8, 200, 2), Regime(1.5e-5, 64, 16, 120, 2),
    Regime(1e-4, 64, 16, 80, 2),
)  # fmt: skip


UNSEEN = (
    Regime(2.5e-6, 64, 16, 120, 3), Regime(2e-5, 32, 8, 120, 4), Regime(7e-6, 32, 8, 120, 4),
)  # fmt: skip
"""Trained and asked about once, after everything else was settled."""


def train(regimes: tuple[Regime, ...], folder: Path) -> None:
    """Train the runs that are not in ``folder`` yet; those of a seed share its base."""
    for regime in regimes:
        out = folder / regime.name
        if (out / "record.json").is_file():
            continue
        settings = {
            "lr": regime.lr, "prompts": regime.prompts, "generations": regime.generations,
            "steps": regime.steps, "seed": regime.seed,
        }  # fmt: skip
        command = [sys.executable, str(EXAMPLE / "train.py"), "--out", str(out)]
        command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        bases = [folder / r.name / "base" for r in regimes if r.seed == regime.seed]
        done = [base for base in bases if (base.parent / "record.json").is_file()]
        command += ["--base", str(done[0])] if done else []
        print("$", *command, flush=True)
        subprocess.run(command, check=True)

"""Peer: the authors' pipeline. First every checkpoint becomes fp16 deltas on disk, one file per
tensor; then each tensor's deltas are loaded whole, decomposed by way of Δ Δᵀ and extrapolated.

    python authors_pipeline.py LOAD_DIR TARGET OUT_FILE SCRATCH_DIR [dense]

``dense`` takes LAPACK's SVD of the deltas in its place. It decomposes the transpose, d × T, three
times as fast as T × d, but in four times the matrix's memory instead of two. Where that much is not
free, T × d it is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from published_numpy import open_run
from safetensors import safe_open
from safetensors.torch import save_file


def store(base_path: Path, run: list[Path], scratch: Path) -> list[str]:
    """The delta store: scratch/<tensor>.npy, T × d in fp16."""
    with safe_open(base_path, "pt") as file:
        base = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    stores = {
        name: np.lib.format.open_memmap(
            scratch / f"{name}.npy", "w+", np.float16, (len(run), tensor.numel())
        )
        for name, tensor in base.items()
    }
    for t, path in enumerate(run):
        with safe_open(path, "pt") as file:
            for name, origin in base.items():
                delta = (file.get_tensor(name).float() - origin.float()).half()
                stores[name][t] = delta.reshape(-1).numpy()
    return list(base)


def available() -> int:
    """Bytes the system can still give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable:"))


Pair = tuple[torch.Tensor, torch.Tensor]
"""Coefficients and direction of a tensor's rank 1."""


def by_gram(deltas: torch.Tensor) -> Pair:
    """As theirs: Δ Δᵀ in fp32, its eigenvectors, the direction, the deltas projected on that."""
    eigenvalues, eigenvectors = torch.linalg.eigh(deltas @ deltas.T)
    direction = (deltas.T @ eigenvectors[:, -1]) / eigenvalues[-1].sqrt()
    return deltas @ direction, direction


def by_svd(deltas: torch.Tensor) -> Pair:
    if 4.5 * deltas.nbytes < 0.9 * available():
        v, sigma, uh = torch.linalg.svd(deltas.T, full_matrices=False)
        u, direction = uh[0], v[:, 0]
    else:
        left, sigma, vh = torch.linalg.svd(deltas, full_matrices=False)
        u, direction = left[:, 0], vh[0]
    return sigma[0] * u, direction


def predict(pair: Pair, steps: torch.Tensor, target: float) -> torch.Tensor:
    """A line through the coefficients; the delta at ``target``."""
    coefficients, direction = pair
    slope, intercept = np.polyfit(steps.numpy(), coefficients.double().numpy(), 1)
    predicted: torch.Tensor = direction * float(slope * target + intercept)
    return predicted


def main() -> None:
    load, target, out, scratch = Path(sys.argv[1]), float(sys.argv[2]), *map(Path, sys.argv[3:5])
    decompose = by_svd if sys.argv[5:] == ["dense"] else by_gram
    base_path, run = open_run(load)
    names = store(base_path, list(run.values()), scratch)
    steps = torch.tensor(list(run), dtype=torch.float64)
    predicted = {}
    with safe_open(base_path, "pt") as file:
        for name in names:
            base = file.get_tensor(name)
            stored = np.load(scratch / f"{name}.npy", mmap_mode="c")
            deltas = torch.from_numpy(stored).float()
            del stored
            moved = predict(decompose(deltas), steps, target)
            predicted[name] = (base.float() + moved.reshape(base.shape)).to(base.dtype)
    save_file(predicted, out)
    with out.open("rb") as written:
        os.fsync(written.fileno())


if __name__ == "__main__":
    main()

"""A run whose checkpoints are in pieces, gathered: :func:`relex_ext.gather`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from relex_ext.checkpoints import CONFIG, Checkpoint, open_checkpoint
from relex_ext.dtypes import CODES, parse
from relex_ext.errors import InputError
from relex_ext.gathering.naming import names_of
from relex_ext.gathering.stored import Pieces
from relex_ext.gathering.whole import Whole, clear_away, companions_for, is_there, write
from relex_ext.lookalikes import check_instead
from relex_ext.output import check_space
from relex_ext.pieces import DCP, VERL, Place, place_in
from relex_ext.plainfiles import target_of
from relex_ext.plan import free_space
from relex_ext.progress import ProgressBar
from relex_ext.steps import Checkpoints, PathLike, resolve, select
from relex_ext.workspace import space_held

_GATHERED = (DCP, VERL)

LOG = logging.getLogger("relex_ext")


@dataclass(frozen=True)
class Gathered:
    """``folders``: step → its model folder; ``made``: the steps that this call has written;
    ``tensors``, ``bytes``: of those."""

    folders: Mapping[int, Path]
    made: tuple[int, ...]
    tensors: int
    bytes: int


def gather(
    checkpoints: Checkpoints,
    out: PathLike,
    *,
    base: PathLike | None = None,
    until: int | None = None,
    steps: Sequence[int] | None = None,
    dtype: str | None = None,
    progress: bool = True,
) -> Gathered:
    """Make whole what a trainer's ranks saved in pieces, a safetensors folder for each step.

    Reads torch distributed checkpoints and the rank files of verl's FSDP. Optimizers and other
    state are left out; of what the files say nothing is run.

    Args:
        checkpoints: see :func:`relex_ext.extrapolate`.
        out: where ``out/step_12`` is made for each step. Those that are there stay; a call that was
            interrupted or killed goes on when it is repeated.
        base: a model folder whose tensors' names and shapes they have to have; its config and
            tokenizer are taken where a step has none.
        until, steps: which checkpoints to gather.
        dtype: of the weights written; by default as they are, float32 where they were trained so.

    Raises:
        RelexError: a checkpoint that is not of these kinds, is not whole, or does not fit the
            base; an output that is another's.
    """
    written = None if dtype is None else parse(dtype)
    model = None if base is None else open_checkpoint(base)
    chosen = select(resolve(checkpoints), until, steps, least=1)
    places = {step: Path(out) / f"step_{step}" for step in chosen}
    sizes = {}
    for step, folder in chosen.items():
        whole = _open(folder, model, written)
        if is_there(places[step], whole):
            clear_away(places[step], whole)
        else:
            sizes[step] = whole.size
        if CONFIG not in whole.companions:
            LOG.info("%s: has no %s; give the base for one", folder, CONFIG)
    held = sum(space_held(places[step]) for step in sizes)
    check_space(Path(out), sum(sizes.values()), free_space(Path(out)) + held)
    tensors = 0
    with ProgressBar(sum(sizes.values()), "gather", progress) as tick:
        for step in sizes:
            whole = _open(chosen[step], model, written)
            write(places[step], whole, tick)
            tensors += len(whole.names)
    return Gathered(places, tuple(sizes), tensors, sum(sizes.values()))


def _open(step: Path, base: Checkpoint | None, dtype: str | None) -> Whole:
    place = place_in(step)
    if place is None or place.kind not in _GATHERED:
        found = sorted(entry.name for entry in step.iterdir())
        check_instead(step, found, "a checkpoint in pieces")
        raise InputError(f"{step}: expected a checkpoint in pieces, found none")
    if place.folder != step:
        target_of(place.folder, step)
    pieces = _pieces(place)
    names = names_of(place.folder, pieces.tensors, base)
    floats = {pieces.tensors[key].dtype for key in names.values()} & CODES.keys()
    one = dtype or (next(iter(floats)) if len(floats) == 1 else None)
    job = {
        "files": pieces.files.identity(),
        "base": None if base is None else str(base.folder.absolute()),
        "dtype": dtype,
    }
    return Whole(pieces, names, dtype, companions_for(step, place, base, one), job)


def _pieces(place: Place) -> Pieces:
    """Imports torch, which nothing before it needs."""
    if place.kind == DCP:
        from relex_ext.gathering.distributed import Distributed

        return Distributed(place.folder)
    from relex_ext.gathering.ranks import Ranks

    return Ranks(place.folder)

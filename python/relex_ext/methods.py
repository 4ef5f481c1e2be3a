"""From a scan to weights, in every way there is: METHODS is the table. Nothing here reads a shard.

Every forecast is θ̂ = θ₀ + Σ_t w_t Δ_t. RELEX's own, for coefficients c_k = σ_k u_k with a curve ĉ_k
through them, is Σ_k ĉ_k(s*) v_k, hence w = Σ_k u_k ĉ_k(s*)/σ_k, because v_k = Δᵀu_k/σ_k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from relex_ext import formulas
from relex_ext.errors import InputError
from relex_ext.fits import FITS, Course
from relex_ext.forecasts import Source, Weights
from relex_ext.formulas import Found

if TYPE_CHECKING:
    from relex_ext.scans import Scan

TIME_AXES = ("step", "index")

AUTO = "auto"

FARTHEST_STEP_BY_STEP = 100_000
"""Steps that ``refit`` predicts at most, one after the other."""


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the table."""

    weigh: Callable[[Source, Sequence[int], Sequence[float], Options], Found]
    takes: frozenset[str]
    """Names of the options that mean something to it, beside ``strength``."""
    spectral: bool
    """It asks for the spectrum. Of the others the weights are known before anything is read."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a target becomes weights: :func:`relex_ext.forecast`'s keyword arguments of these names.

    Raises:
        InputError: a value out of range, or one that the method has no use for.
    """

    rank: int = 1
    time_axis: str = "step"
    step_scale: float = 1.0
    method: str = "relex"
    fit: str = "linear"
    degree: int | None = None
    window: int | None = None
    refit: int | None = None
    alpha: float | None = None
    decay: float | None = None
    strength: float | str = 1.0

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("fit", self.fit, FITS)
        _one_of("time_axis", self.time_axis, TIME_AXES)
        _whole("rank", self.rank, 1)
        _whole("degree", self.degree, 1, 9)
        _whole("window", self.window, 1)
        _whole("refit", self.refit, 1)
        _number("step_scale", self.step_scale)
        _number("alpha", self.alpha)
        _number("decay", self.decay, 0.0, 1.0)
        if self.strength != AUTO:
            _number("strength", self.strength, 0.0, hint=" or auto")
        takes = METHODS[self.method].takes
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default and field.name not in {"method", "strength", *takes}:
                raise InputError(
                    f"{field.name}: expected none with method {self.method}, found {value}"
                )
        if self.strength == AUTO and "step_scale" not in takes:
            raise InputError(
                f"strength: expected a number with method {self.method}, which looks at no later "
                "step, found auto"
            )
        if self.degree is not None and self.fit != "polynomial":
            raise InputError(f"degree: expected none with fit {self.fit}, found {self.degree}")
        for name in ("refit", "alpha"):
            if getattr(self, name) is not None and self.step_scale != 1.0:
                raise InputError(f"step_scale: expected none with {name}, found {self.step_scale}")

    @property
    def spectral(self) -> bool:
        """The method asks for the spectrum."""
        return METHODS[self.method].spectral

    def strengths(self, targets: Sequence[float]) -> tuple[float, ...]:
        """λ of each target, where it is a number."""
        return (float(self.strength),) * len(targets)

    @property
    def course(self) -> Course:
        """How coefficients are followed."""
        by_row = self.time_axis == "index"
        return Course(self.fit, self.degree or 2, by_row, self.window, self.refit)

    def scaled(self, targets: Sequence[float]) -> NDArray[np.float64]:
        """Where the targets are looked for. By rows, as in the authors' script, at whole steps."""
        at = np.array(targets, np.float64) * self.step_scale
        return np.rint(at) if self.time_axis == "index" else at

    def check(self, steps: Sequence[int], targets: Sequence[float]) -> None:
        """Refuse what does not fit these checkpoints and targets."""
        count = len(steps)
        if self.method == "two-point":
            if self.window is not None and self.window >= count:
                raise InputError(f"window: expected at most {count - 1}, found {self.window}")
        elif self.window is not None and self.window > count:
            raise InputError(f"window: expected at most {count} checkpoints, found {self.window}")
        if "fit" in METHODS[self.method].takes:
            least = FITS[self.fit].least(self.degree or 2)
            used, what = self.window or count, "checkpoints" if self.window is None else "window"
            if used < least:
                raise InputError(f"{what}: expected at least {least} to fit, found {used}")
        if self.method in ("reconstruct", "fit-reconstruct"):
            for target in targets:
                if target not in steps:
                    known = ", ".join(map(str, steps))
                    raise InputError(f"target_steps: expected steps of {known}, found {target:g}")
        if self.refit is not None:
            for target in targets:
                if target != int(target) or target > steps[-1] + FARTHEST_STEP_BY_STEP:
                    raise InputError(
                        "target_steps: expected whole steps, at most "
                        f"{steps[-1] + FARTHEST_STEP_BY_STEP}, with refit, found {target:g}"
                    )
        zero = {"secant": steps[-1], "first-update": steps[0] if self.alpha is None else None}
        if zero.get(self.method) == 0:
            raise InputError(f"checkpoints: expected steps other than 0 for method {self.method}")


_FIT = frozenset({"rank", "time_axis", "fit", "degree"})
_FORECAST = _FIT | {"step_scale", "window", "refit"}

METHODS: Mapping[str, Method] = {
    "relex": Method(formulas.relex, _FORECAST, spectral=True),
    "pinned": Method(formulas.pinned, _FORECAST, spectral=True),
    "reconstruct": Method(formulas.reconstruct, frozenset({"rank"}), spectral=True),
    "fit-reconstruct": Method(formulas.fit_reconstruct, _FIT, spectral=True),
    "latest": Method(formulas.latest, frozenset(), spectral=False),
    "secant": Method(formulas.secant, frozenset({"step_scale"}), spectral=False),
    "two-point": Method(formulas.two_point, frozenset({"step_scale", "window"}), spectral=False),
    "first-update": Method(
        formulas.first_update, frozenset({"step_scale", "alpha"}), spectral=False
    ),
    "ema": Method(formulas.ema, frozenset({"decay"}), spectral=False),
}


# ---- for one tensor, for a scan ----------------------------------------------------------------


def weigh(
    source: Source,
    steps: Sequence[int],
    targets: Sequence[float],
    options: Options,
    strengths: Sequence[float],
) -> Found:
    """One tensor's weights e_T + λ (w − e_T), for the λ of each target, and its fits.

    A tensor that is known to be frozen, and directions whose σ is nothing, get no component; a
    frozen tensor's weights are zero.
    """
    method = METHODS[options.method]
    weights, fits = method.weigh(source, steps, targets, options)
    if method.spectral and not fits:
        return np.zeros_like(weights), ()
    shrunk = np.array(strengths)[:, None]
    if (shrunk != 1.0).any():
        newest = formulas.newest(steps, targets)
        weights = newest + shrunk * (weights - newest)
    return weights, fits


def scan_solver(solver: str, strength: float | str) -> str:
    """The solver of a scan for such a forecast: strength auto compares parts of the trajectory,
    of which power iteration knows nothing."""
    if strength != AUTO:
        return solver
    if solver == "power":
        raise InputError("solver: expected auto or gram with strength auto, found power")
    return "gram"


def weigh_unscanned(
    names: Iterable[str], steps: Sequence[int], targets: Sequence[float], options: Options
) -> Weights:
    """The weights of these tensors where nothing has to be scanned for them."""
    sources = (Source(name, None) for name in names)
    return weigh_all(sources, steps, targets, options, options.strengths(targets))


def weigh_all(
    sources: Iterable[Source],
    steps: Sequence[int],
    targets: Sequence[float],
    options: Options,
    strengths: Sequence[float],
) -> Weights:
    """Every tensor's weights."""
    found = {s.name: weigh(s, steps, targets, options, strengths) for s in sources}
    return Weights(
        tuple(steps), tuple(targets), {name: one[0] for name, one in found.items()},
        {name: one[1] for name, one in found.items()}, tuple(strengths),
        options.method,
    )  # fmt: skip


def weigh_scan(
    scan: Scan, steps: Sequence[int], targets: Sequence[float], options: Options
) -> Weights:
    """The weights of a forecast from some of a scan's steps.

    Raises:
        InputError: options that do not fit these steps and targets, or more than the scan holds.
    """
    options.check(steps, targets)
    if options.strength == AUTO:
        from relex_ext.evidence.verdict import auto_strength

        strengths = tuple(auto_strength(scan, tuple(steps), tuple(targets), options))
    else:
        strengths = options.strengths(targets)
    sources = (scan.source(name, steps) for name in scan.names)
    found = weigh_all(sources, steps, targets, options, strengths)
    nothing = dict.fromkeys(scan.nonfinite, np.zeros((len(targets), len(steps))))
    return replace(
        found, tensors={**found.tensors, **nothing},
        components={**found.components, **dict.fromkeys(scan.nonfinite, ())},
        carried=scan.nonfinite,
    )  # fmt: skip


# ---- checks ------------------------------------------------------------------------------------


def _one_of(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        expected = " or ".join([", ".join([*known][:-1]), [*known][-1]])
        raise InputError(f"{name}: expected {expected}, found {value}")


def _whole(name: str, value: object, least: int, most: float = math.inf) -> None:
    if value is None:
        return
    if (
        isinstance(value, (int, np.integer))
        and not isinstance(value, bool)
        and least <= value <= most
    ):
        return
    limits = f"at least {least}" if most == math.inf else f"{least} to {most}"
    raise InputError(f"{name}: expected {limits}, found {value}")


def _number(
    name: str, value: object, least: float = -math.inf, most: float = math.inf, hint: str = ""
) -> None:
    if value is None:
        return
    if (
        isinstance(value, (int, float, np.floating, np.integer))
        and math.isfinite(value)
        and least <= value <= most
    ):
        return
    limits = "" if least == -math.inf else f" from {least:g}"
    limits += "" if most == math.inf else f" to {most:g}"
    raise InputError(f"{name}: expected a finite number{limits}{hint}, found {value}")

"""Time against nodes, as an SVG that is the same for the same numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from simulate.jobs import Outcome


def draw(found: Mapping[tuple[str, str, int], Outcome], path: Path) -> None:
    """``found``: (run, file system, nodes) → outcome. A panel for each run; dashed: the time that
    the file system needs to deliver every byte once."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "relex"
    from matplotlib import pyplot

    runs = _distinct(run for run, _, _ in found)
    systems = _distinct(system for _, system, _ in found)
    figure, axes = pyplot.subplots(1, len(runs), figsize=(4.2 * len(runs), 4), squeeze=False)
    for run, panel in zip(runs, axes[0], strict=True):
        for i, system in enumerate(systems):
            points = sorted((n, o) for (r, s, n), o in found.items() if (r, s) == (run, system))
            nodes = [n for n, _ in points]
            panel.plot(nodes, [o.seconds for _, o in points], "o-", color=f"C{i}", label=system)
            panel.plot(nodes, [o.floor for _, o in points], "--", color=f"C{i}", linewidth=1)
        panel.set(title=run, xlabel="nodes", xscale="log", yscale="log")
        panel.set_xticks(nodes, [str(n) for n in nodes])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    axes[0, 0].set_ylabel("seconds")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="lower center", ncols=len(systems))
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _distinct(names: Iterable[str]) -> Sequence[str]:
    return list(dict.fromkeys(names))

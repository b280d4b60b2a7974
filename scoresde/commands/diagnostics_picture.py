"""Diagnostics of a run as a picture; needs matplotlib."""

from __future__ import annotations

import io
import math
from typing import Any

from scoresde.commands.diagnostics_words import centres, per_nat

MODEL, OTHER = "#1f5fa8", "#c2571a"


def draw(report: dict[str, Any]) -> bytes:
    """A PNG with one panel for each kind of diagnostic in a report, over log-SNR.

    Raises:
        ImportError: Without matplotlib, which the extra `plot` brings.
    """
    from matplotlib.figure import Figure

    panels = {"loss": _loss, "fokker_planck": _fokker_planck, "asymmetry": _asymmetry, "gap": _gap}
    shown = [kind for kind in panels if kind in report]
    columns = min(2, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(6.4 * columns, 4.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for kind, ax in zip(shown, axes, strict=False):
        panels[kind](ax, report)
        ax.set_xlim(report["logsnr_edges"][0], report["logsnr_edges"][-1])
        ax.set_xlabel("log-SNR   (noise → data)")
        ax.grid(alpha=0.25, linewidth=0.6)
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    figure.suptitle(f"{report['run']}, step {report['step']}; bars: ± 2 standard errors", fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _loss(ax: Any, report: dict[str, Any]) -> None:
    loss, edges, scale = report["loss"], report["logsnr_edges"], per_nat(report)
    linear, memory = loss.get("linear_optimum"), loss.get("memorising_optimum")
    if linear is not None and memory is not None:
        ax.stairs(linear, edges, baseline=memory, fill=True, color="0.88", linewidth=0)
    if linear is not None:
        ax.stairs(linear, edges, baseline=None, color="0.45", linestyle="--", label="best linear denoiser")
    if memory is not None:
        ax.stairs(memory, edges, baseline=None, color="0.45", linestyle=":", label="knows the training set")
    _with_errors(ax, report, "loss", f"model, {loss['num_examples']} {report['examples']}")
    ax.set_ylim(bottom=0)
    factor = 0.5 * math.prod(report["shape"]) * scale
    right = ax.secondary_yaxis("right", functions=(lambda y: factor * y, lambda y: y / factor))
    right.set_ylabel(f"{report['unit']} per unit of log-SNR")
    ax.set_ylabel("E‖ε − ε̂‖² / d")
    total, error = scale * loss["total_nats"], scale * loss["total_nats_std_error"]
    ax.set_title(f"Denoising loss: {total:.3f} ± {error:.3f} {report['unit']} in all", fontsize=10)
    ax.legend(fontsize=8, loc="upper left")


def _fokker_planck(ax: Any, report: dict[str, Any]) -> None:
    _with_errors(ax, report, "fokker_planck", None)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("√(E‖r‖² / d), in units of the noise")
    ax.set_title("Score Fokker-Planck residual (0: one diffusion)", fontsize=10)


def _asymmetry(ax: Any, report: dict[str, Any]) -> None:
    _with_errors(ax, report, "asymmetry", None)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("‖J − Jᵀ‖ / ‖J + Jᵀ‖")
    ax.set_title("Asymmetry of the score's Jacobian (0: a gradient)", fontsize=10)


def _gap(ax: Any, report: dict[str, Any]) -> None:
    gap = report["gap"]
    floor = gap["sliced_floor"]
    low, high = ([f + sign * 2 * s for f, s in zip(floor, gap["sliced_floor_std"], strict=True)] for sign in (-1, 1))
    ax.fill_between(gap["logsnr"], low, high, color="0.88", linewidth=0)
    ax.plot(gap["logsnr"], floor, color="0.45", linestyle="--", label="two halves of the SDE's samples (± 2 std)")
    ax.plot(gap["logsnr"], gap["sliced"], "o-", color=MODEL, markersize=4, label="ODE against SDE")
    ax.plot(gap["logsnr"], [abs(value) for value in gap["log_std_ratio"]], "s-", color=OTHER, markersize=3.5,
            linewidth=1, label="|log ratio of standard deviations|")  # fmt: skip
    ax.set_ylim(bottom=0)
    ax.set_ylabel("sliced Wasserstein distance / standard deviation")
    ax.set_title(f"Marginals of ODE and SDE, {gap['samples']} samples, {gap['steps']} steps", fontsize=10)
    ax.legend(fontsize=8)


def _with_errors(ax: Any, report: dict[str, Any], kind: str, label: str | None) -> None:
    """A curve over the centres of the bins, with bars of two standard errors."""
    values, errors = report[kind]["value"], [2 * error for error in report[kind]["std_error"]]
    ax.errorbar(centres(report), values, yerr=errors, fmt="o-", color=MODEL, markersize=3.5, linewidth=1.2,
                capsize=2, label=label)  # fmt: skip

"""What the diagnostics of a run say, in sentences."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any


def summary(report: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The numbers for metrics.json, and a line or two for each kind of diagnostic in a report."""
    numbers: dict[str, Any] = {}
    lines: list[str] = []
    for kind, tell in (("loss", _loss), ("fokker_planck", _fokker_planck), ("asymmetry", _asymmetry), ("gap", _gap)):
        if kind in report:
            found, said = tell(report)
            numbers, lines = numbers | found, lines + said
    return numbers, lines


def per_nat(report: dict[str, Any]) -> float:
    """The report's unit per nat of an example: bits/dim of levels, nats of continuous data."""
    return 1 / (math.prod(report["shape"]) * math.log(2)) if report["unit"] == "bits/dim" else 1.0


def reference_nats(report: dict[str, Any], name: str) -> list[float]:
    """½ Δlogsnr d loss of a reference's losses."""
    edges, entries = report["logsnr_edges"], math.prod(report["shape"])
    widths = (high - low for low, high in pairwise(edges))
    return [0.5 * width * entries * value for width, value in zip(widths, report["loss"][name], strict=True)]


def _loss(report: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    loss, unit, scale = report["loss"], report["unit"], per_nat(report)
    total, error = scale * loss["total_nats"], scale * loss["total_nats_std_error"]
    low, high = _middle_half(report["logsnr_edges"], loss["nats"])
    lines = [
        f"loss: the diffusion term of the bound is {total:.3f} ± {error:.3f} {unit} on {loss['num_examples']} "
        f"{report['examples']}, half of it between log-SNR {low:.1f} and {high:.1f}"
    ]
    names = {"linear_optimum": "the best linear denoiser", "memorising_optimum": "one that knows the training set"}
    known = {name: scale * sum(reference_nats(report, name)) for name in names if name in loss}
    if known:
        lines.append("      " + ", ".join(f"{names[name]} has {value:.3f}" for name, value in known.items()))
    if "linear_optimum" in loss:
        worse = [
            f"{place:.1f}"
            for place, value, error, line in zip(
                centres(report), loss["value"], loss["std_error"], loss["linear_optimum"], strict=True
            )
            if value - 3 * error > 1.02 * line + 1e-3
        ]
        if worse:
            lines.append(f"      worse than a linear denoiser at log-SNR {', '.join(worse)}: train more at that noise")
    return {"diffusion_nats": loss["total_nats"], "diffusion_nats_std_error": loss["total_nats_std_error"]}, lines


def _fokker_planck(report: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    worst, error, place = _worst(report, "fokker_planck")
    line = (
        f"Fokker-Planck: between noise levels the model departs from its own diffusion by at most {worst:.2g} ± "
        f"{error:.1g} of the noise per e-fold of σ/α, at log-SNR {place:.1f} (0: one diffusion)"
    )
    return {"fokker_planck_max": worst}, [line]


def _asymmetry(report: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    worst, error, place = _worst(report, "asymmetry")
    line = (
        f"asymmetry: the antisymmetric part of the score's Jacobian is at most {100 * worst:.2g} ± {100 * error:.1g} % "
        f"of the symmetric one, at log-SNR {place:.1f} (0: the gradient of a density)"
    )
    return {"asymmetry_max": worst}, [line]


def _gap(report: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    gap = report["gap"]
    sliced, floor, scatter = (gap[name][-1] for name in ("sliced", "sliced_floor", "sliced_floor_std"))
    verdict = "a gap beyond the noise" if sliced > floor + 3 * scatter else "no gap beyond the noise"
    wider = 100 * math.expm1(gap["log_std_ratio"][-1])
    line = (
        f"ODE and SDE: at the data end their samples are {sliced:.3f} standard deviations apart, two halves of the "
        f"SDE's {floor:.3f} ± {scatter:.3f}: {verdict}; the ODE's are {abs(wider):.1f} ± "
        f"{100 * gap['log_std_ratio_floor'][-1]:.1f} % {'wider' if wider > 0 else 'narrower'}"
    )
    return {"gap_sliced": sliced, "gap_sliced_floor": floor}, [line]


def centres(report: dict[str, Any]) -> list[float]:
    """Of the bins, in log-SNR."""
    edges = report["logsnr_edges"]
    return [(low + high) / 2 for low, high in pairwise(edges)]


def _worst(report: dict[str, Any], kind: str) -> tuple[float, float, float]:
    """Largest value, its standard error and its place."""
    values = report[kind]["value"]
    index = max(range(len(values)), key=values.__getitem__)
    return values[index], report[kind]["std_error"][index], centres(report)[index]


def _middle_half(edges: list[float], nats: list[float]) -> tuple[float, float]:
    """Log-SNRs below which a quarter and three quarters of the nats lie."""
    places, below, whole = [], 0.0, sum(nats)
    targets = [0.25 * whole, 0.75 * whole]
    for low, high, value in zip(edges[:-1], edges[1:], nats, strict=True):
        while targets and below + value >= targets[0]:
            places.append(low + (high - low) * (targets.pop(0) - below) / value if value else low)
        below += value
    return places[0], places[-1]

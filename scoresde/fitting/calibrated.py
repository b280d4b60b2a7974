"""A linear multistep solver whose times and weights were fitted to one model."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.files import open_regular, write_atomically
from scoresde.fitting.gaussian_flow import GaussianFlow
from scoresde.noise.sources import NoiseSource
from scoresde.plain_pickle import read_tensors
from scoresde.sde import SDE
from scoresde.sde.grids import Start, uniform_grid
from scoresde.sde.levels import Interval, Level, Levels, Weights
from scoresde.solvers.base import StepSolver, linear
from scoresde.solvers.exponential import prediction_coefficients

History = tuple[tuple[Tensor, ...], tuple[Level, ...]]  # v̂ and the levels of the calls so far, the latest first
RENAMED = {"pilots": "paths", "pilot_nfe": "paths_nfe"}  # keys of the records of earlier versions


@dataclass(frozen=True, eq=False)
class Calibration:
    """Noise levels and weights of a fitted solver, and how they were obtained.

    Args:
        logsnr: Of the N levels at which the network is called, increasing, (N,).
        keep: a_i, (N,).
        weights: b_ij of the value j calls before call i, (N, N).
        start: Flow that leads from t = 1 to the first level without a call.
        sigma_data: Standard deviation of the data, which scales y and v.
        record: Reference paths, their network calls, errors on those held out: numbers for the user.
    """

    logsnr: Tensor
    keep: Tensor
    weights: Tensor
    start: GaussianFlow
    sigma_data: float
    record: dict[str, float]

    def save(self, path: str | Path) -> None:
        """Write tensors and numbers, through a temporary name."""
        save_fit(path, self)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote; runs no code."""
        return cls(**load_fit(path, cls))


def save_fit(path: str | Path, fit: Any) -> None:
    """Write the fields of a fit, of its `start` too, through a temporary name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(fit_state(fit), buffer)
    write_atomically(path, buffer.getbuffer())


def fit_state(fit: Any) -> dict[str, Any]:
    """The fields of a fit as tensors and plain values, which `fit_fields` reads."""
    return {**vars(fit), "start": None if fit.start is None else vars(fit.start)}


def load_fit(path: str | Path, kind: type) -> dict[str, Any]:
    """The fields of a saved fit, or one sentence that says why not."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no saved {kind.__name__} at {path}: fit one and save it there.")
    try:
        with open_regular(path) as file:
            content = read_tensors(file)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a {kind.__name__} ({type(error).__name__}): delete it and fit again."
        ) from None
    return fit_fields(content, kind, path)


def fit_fields(content: Any, kind: type, path: str | Path) -> dict[str, Any]:
    """The arguments of a fit of this kind, from what `fit_state` made; `path` is where it was, for the message.

    A fit that a run keeps says besides which weights it was fitted to.
    """
    content = (
        {key: value for key, value in content.items() if key != "fitted_to"} if isinstance(content, dict) else None
    )
    start = content.get("start") if _has_fields_of(kind, content) else {}
    if start is not None and not _has_fields_of(GaussianFlow, start):
        raise ValueError(f"{path} holds something else than a {kind.__name__}: delete it and fit again.")
    record = {RENAMED.get(key, key): value for key, value in content["record"].items()}
    return {**content, "start": None if start is None else GaussianFlow(**start), "record": record}


def _has_fields_of(kind: type, content: Any) -> bool:
    return isinstance(content, dict) and set(content) == {field.name for field in fields(kind)}


def check_levels(owner: str, sde: SDE, logsnr: Tensor, times: Tensor) -> None:
    """Whether a process passes through the levels that a fit wants, at these times."""
    inside = bool(((times > 0) & (times <= 1)).all()) and bool((times.diff() < 0).all())
    if not inside or not torch.allclose(sde.logsnr(times), logsnr, rtol=0, atol=1e-4):
        raise ValueError(
            f"{owner} was fitted to noise levels outside those of this {type(sde).__name__}: fit one to this process."
        )


@dataclass(frozen=True, kw_only=True)
class CalibratedMultistep(StepSolver):
    """Linear multistep with times and weights fitted to a model's own paths; one call per level, from 4 calls up.

        start      the flow of Gaussian data from t = 1 to the first level
        step       y_{i+1} = a_i y_i + Σ_{j≤i} b_ij v̂_{i−j},        y = x/√(α² c² + σ²)
        end        the last step goes to noise 0

    v̂ is the velocity of y in the angle φ = atan(σ/(α c)), c the data's standard deviation. Unfitted weights are those
    of `ExponentialAdams(prediction="v")`. See `scoresde.calibrate`.

    Args:
        calibration: What `calibrate` returned, or the path of a saved one.

    References:
        Shaul et al., "Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models", 2024,
        arXiv:2403.01329.
        Frankel et al., "S4S: Solving for a Diffusion Model Solver", 2025, arXiv:2502.17423.
    """

    steps: int = 0  # as many as were fitted
    calibration: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.calibration, str | Path):
            object.__setattr__(self, "calibration", Calibration.load(self.calibration))
        if not isinstance(self.calibration, Calibration):
            raise ValueError(
                f"CalibratedMultistep needs a calibration, got {self.calibration!r}: make one with "
                f"scoresde.calibrate(denoiser, nfe, paths)."
            )
        made = len(self.calibration.logsnr) - 1
        if self.steps not in (0, made) or self.grid is not uniform_grid or self.t_end is not None or not self.denoise:
            raise ValueError(
                f"CalibratedMultistep has the {made} steps, the times and the end that it was fitted with: "
                f"leave steps, grid, t_end and denoise alone, or calibrate for what you want."
            )
        object.__setattr__(self, "steps", made)
        super().__post_init__()

    def _times(self, sde: SDE, steps: int | None = None, *, backward: bool = False) -> tuple[Tensor, Start]:
        times = sde.time(self.calibration.logsnr)
        check_levels("CalibratedMultistep", sde, self.calibration.logsnr, times)
        return times, self.calibration.start

    def weights(self, levels: Levels) -> Weights:
        """c_x and c_0 of v̂ = c_x x + c_0 x̂0, and a and b of a step in x: those in y, by the norms of y = x/norm."""
        made, levels = self.calibration, levels.scaled(self.calibration.sigma_data)
        c_x, c_0 = prediction_coefficients(levels.alpha, levels.sigma, "v")
        norm = torch.hypot(levels.alpha, levels.sigma)
        rows = (len(levels) - 1, *[1] * (norm.ndim - 1))  # by hand, those of the steps taken so far
        keep, *past = (column[: rows[0]].reshape(rows) for column in (made.keep, *made.weights.unbind(1)))
        past = [norm[1:] * column for column in past]
        return {"c_x": c_x[:-1], "c_0": c_0[:-1], "keep": keep * norm[1:] / norm[:-1], "past": past}

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: History | None
    ) -> tuple[Tensor, History]:
        calls, before = ((), ()) if state is None else state
        w = interval.weights(self, before)
        calls = (linear((w.c_x, x), (w.c_0, denoiser.x0(x, interval.t))), *calls)
        return linear((w.keep, x), *zip(w.past, calls, strict=False)), (calls, (interval.t, *before))

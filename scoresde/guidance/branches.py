"""Several denoisers asked at one state: in one call of a network, where they are that network with other conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import CONDITIONS, Denoiser, without
from scoresde.sde.levels import Level, Levels, Schedule

Method = Callable[[Denoiser], Callable[..., Tensor]]  # a denoiser -> its x0, or its v_at


def ask_all(
    denoisers: Sequence[Denoiser], method: Method, x: Tensor, level: Level, cond: dict[str, Any]
) -> list[Tensor]:
    """The answers of all denoisers, each (B, *).

    Those that are one denoiser with different bound conditions are asked together: a batch of n B rows, one call. That
    takes a denoiser that treats every row alike (`Denoiser.select`) and conditions that can be put one after the other.

    Args:
        denoisers: On the same SDE.
        method: Which question: lambda denoiser: denoiser.x0, or v_at.
        x, level, cond: Of the question; cond reaches all of them.
    """
    asked = [denoiser.unbound(**cond) for denoiser in denoisers]
    answers: dict[int, Tensor] = {}
    for index, (base, _) in enumerate(asked):
        if index not in answers:
            rows = [k for k, (other, _) in enumerate(asked) if other is base]
            together = _together(base, method, x, level, [asked[k][1] for k in rows])
            answers |= dict(zip(rows, together, strict=True))
    return [answers[k] for k in range(len(asked))]


def select_all(denoisers: Sequence[Denoiser], index: Tensor, batch: int) -> list[Denoiser] | None:
    """All denoisers for some rows of a batch, or None if one of them cannot be split."""
    chosen = [denoiser.select(index, batch) for denoiser in denoisers]
    known = [denoiser for denoiser in chosen if denoiser is not None]
    return known if len(known) == len(denoisers) else None


def require_same_sde(owner: str, *denoisers: Denoiser) -> None:
    """Raise ValueError unless all denoisers have the SDE of the first."""
    for other in denoisers[1:]:
        if denoisers[0].sde != other.sde:
            raise ValueError(
                f"{owner} combines denoisers at equal (α, σ): they need the same SDE, got {denoisers[0].sde} and "
                f"{other.sde}."
            )


def _together(
    base: Denoiser, method: Method, x: Tensor, level: Level, conds: Sequence[dict[str, Any]]
) -> Sequence[Tensor]:
    n, batch = len(conds), x.shape[0]
    joined = _joined(conds, x) if n > 1 else None
    if joined is not None:
        rows = torch.arange(batch, device=x.device).repeat(n)
        if (longer := base.select(rows, batch)) is not None:
            copies = torch.cat([x] * n)
            try:
                return method(longer)(copies, _repeated(level, n, copies), **joined).chunk(n)
            except ValueError:  # the sentence of one call alone names the shapes that the caller has
                pass
    return [method(base)(x, level, **cond) for cond in conds]


def _repeated(level: Level, n: int, copies: Tensor) -> Level:
    """The level of n copies of a batch."""
    if level.time.ndim == 0:
        return level
    levels = level.schedule.levels[level.index : level.index + 1]
    columns = (column.repeat(1, n) for column in (levels.t, levels.alpha, levels.sigma, levels.lam))
    return Schedule(Levels(levels.sde, *columns), (level.time.repeat(n),), (level.host_time.repeat(n),), copies).all[0]


def _joined(conds: Sequence[dict[str, Any]], x: Tensor) -> dict[str, Any] | None:
    """The conditions of all copies of the batch; None if some cannot be put one after the other."""
    joined: dict[str, Any] = {}
    for name in dict.fromkeys(name for cond in conds for name in cond):
        values = [cond.get(name) for cond in conds]
        if all(value is values[0] for value in values) and not isinstance(values[0], Tensor):
            joined[name] = values[0]
            continue
        example = next((value for value in values if value is not None), None)
        parts = [_rows(name, value, example, x) for value in values]
        known = [part for part in parts if part is not None]
        if len(known) < len(values) or len({part.shape for part in known}) > 1:
            return None
        joined[name] = torch.cat(known)
    return joined


def _rows(name: str, value: Any, example: Any, x: Tensor) -> Tensor | None:
    """One row of a condition per sample, those of none as `without` has them; None if there is not one for each."""
    batch = x.shape[0]
    if name not in CONDITIONS:
        return value if isinstance(value, Tensor) and value.shape[:1] == (batch,) else None
    rows = torch.as_tensor(example if value is None else value, device=x.device)
    if rows.ndim == 0 or (name == "condition" and rows.ndim == 1):  # one for all
        rows = rows.expand(batch, *rows.shape)
    elif len(rows) == 1 and name in ("image", "sequence"):
        rows = rows.expand(batch, *rows.shape[1:])
    if len(rows) != batch:
        return None
    rows = rows.flatten(1) if name == "condition" else rows
    return rows if value is not None else without(name, rows, torch.ones(batch, dtype=torch.bool, device=x.device))

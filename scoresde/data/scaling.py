"""From `standardize`, `transform` and `circular` to the codec of continuous data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from scoresde.checks import check_choice, check_numbers
from scoresde.data.circular import MOST_CIRCULAR
from scoresde.data.codec import Codec, Standardized
from scoresde.data.transforms import TRANSFORMS, Transformed
from scoresde.spelling import did_you_mean, nearest

NONE = "none"  # the name of no transform


def check_scaling(owner: str, transform: object, circular: object) -> None:
    """Raise ValueError unless these are what `fit_codec` takes, whatever the columns are called."""
    asked = transform.values() if isinstance(transform, Mapping) else [] if transform is None else [transform]
    for name in asked:
        if name not in (*TRANSFORMS, NONE):
            guess = did_you_mean(nearest(name, TRANSFORMS) if isinstance(name, str) else None)
            raise ValueError(f"{owner} needs transform to be {', '.join((*TRANSFORMS, NONE))}, got {name!r}{guess}")
    if circular is not None and not isinstance(circular, Mapping):
        raise ValueError(
            f"{owner} needs circular to be columns with their periods, as {{phase: 360}}, got {circular!r}."
        )
    for name, period in (circular or {}).items():  # type: ignore[attr-defined]
        check_numbers(owner, "0 < period < 1e300", period=period)
        if period is True:
            raise ValueError(f"{owner} needs the period of the circular column {name} to be a number, got true.")


def check_missing(owner: str, missing: object, levels: int | None = None) -> None:
    """Raise ValueError unless `missing` is "mask" or None, and of continuous values."""
    if missing is not None:
        check_choice(owner, "missing", missing, ("mask", None))
        if levels is not None:
            raise ValueError(f"{owner} with levels={levels} has no use for missing=mask: leave it out.")


def fit_codec(
    owner: str, x: Tensor, names: Sequence[str], *, standardize: bool,
    transform: str | Mapping[str, str] | None = None, circular: Mapping[str, float] | None = None,
) -> Codec:  # fmt: skip
    """The codec of continuous training data (N, C, *).

    Args:
        owner: "data=table", for messages.
        x: The data.
        names: Of the columns, or channels; their numbers if they have none.
        standardize: Whether what is transformed is standardised.
        transform: Of all columns, or of some by name.
        circular: Periods by name.
    """
    transforms, periods = chosen_transforms(owner, names, transform, circular)
    if periods and x.ndim != 2:
        raise ValueError(f"{owner} has circular columns of tables alone, and these are events of {tuple(x.shape[1:])}.")
    if len(periods) > MOST_CIRCULAR:
        raise ValueError(f"{owner} takes {MOST_CIRCULAR} circular columns at most, got {len(periods)}.")
    if periods and bool(x[:, list(periods)].isnan().any()):
        raise ValueError(f"{owner} with missing=mask takes no gaps in circular columns.")
    if transforms or periods:
        return Transformed.fit(x, transforms, periods, standardize=standardize, names=names)
    if standardize:
        return Standardized.fit(x, names)
    return Standardized(mean=x.new_zeros(()), std=x.new_ones(()), shape=tuple(x.shape[1:]))


def chosen_transforms(
    owner: str, names: Sequence[str], transform: str | Mapping[str, str] | None, circular: Mapping[str, float] | None
) -> tuple[dict[int, str], dict[int, float]]:
    """Transforms and periods by the number of their column."""
    periods = {_number(owner, "circular", name, names): float(value) for name, value in (circular or {}).items()}
    if isinstance(transform, Mapping):
        found = {_number(owner, "transform", name, names): kind for name, kind in transform.items()}
    else:
        found = {column: transform for column in range(len(names)) if transform and column not in periods}
    found = {column: kind for column, kind in found.items() if kind != NONE}
    if both := sorted(found.keys() & periods):
        raise ValueError(f"{owner} has no transform of a circular column, got both for {names[both[0]]}.")
    return found, periods


def check_transforms(where: str, x: Tensor, names: Sequence[str], transforms: Mapping[int, str]) -> None:
    """Raise ValueError with the first row of a file that a transform cannot take.

    Args:
        where: The file.
        x: All its rows, (N, C, *), NaN where there is nothing.
        names, transforms: See `chosen_transforms`.
    """
    for column, kind in transforms.items():
        values = x[:, column].flatten(1) if x.ndim > 2 else x[:, column, None]
        if kind == "log" and bool((wrong := values <= 0).any()):
            rows = wrong.any(1)
            row = int(rows.nonzero()[0])
            raise ValueError(
                f"{where} holds values without a log in column {names[column]}: row {row} (counted from 0) has "
                f"{float(values[row][wrong[row]][0]):g}, and {int(rows.sum()) - 1} rows more; repair them, or use "
                f"data.transform={{{names[column]}: asinh}}"
            )


def _number(owner: str, key: str, name: object, names: Sequence[str]) -> int:
    if str(name) in names:
        return list(names).index(str(name))
    known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise ValueError(
        f"{owner} has no column {name}, which data.{key} names, among {known}{did_you_mean(nearest(str(name), names))}"
    )

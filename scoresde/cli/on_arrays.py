"""Training on an array, from a notebook: the recipes of `train.py experiment=...` without a command line."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoresde.cli.keys import check_choices, check_keys, config_dir

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scoresde.commands.notebook import TrainedRun

RECIPES = {"table": "table", "series": "series", "image": "photos", "volume": "volume"}  # experiments by kind of data
PICTURE = 4  # axes of an array of pictures
COLOURS = (1, 3)


def fit(
    x: Any,
    condition: Any = None,
    label: Any = None,
    budget: str | float | None = "2min",
    run: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    seed: int = 0,
    device: str | None = None,
    image: Any = None,
    sequence: Any = None,
) -> TrainedRun:
    """Train a diffusion model on an array, with the default recipe for its kind, and return it ready to use.

        model = fit(x, budget="5min")
        model.sample(100), model.log_prob(x)                both in the units of x

    The recipe is `train.py experiment=` table for (N, C), series for (N, C, L), photos for (N, C, H, W) and volume for
    (N, C, D, H, W). An array of uint8 holds levels 0..255, whose log p is a probability; uint8 pictures may be
    (N, H, W, C) as well. A tenth of the examples is kept for the test split.

    Args:
        x: Examples in their own units, (N, *): an array or a tensor.
        condition: What x is given: numbers in their own units, (N,) or (N, C).
        label: Class of each example, whole numbers from 0, (N,).
        budget: Time for the training, "90s", "10min", "2h"; None: the steps of the recipe.
        run: Run directory, which holds the data as data.npz too, for `train.py` and `sample.py`; the same call goes on
            with it. None: a temporary one, which lasts as long as the returned object.
        overrides: Words of `train.py`'s command line: ["model.width=64", "data.transform=log"].
        seed: Of initial weights, batches, times and noise.
        device: "cpu", "cuda", ...; None: a GPU if there is one.
        image: What x is given beside that: an image, series or volume for each, (N, C, *), of any resolution.
        sequence: And a sequence: text (N,), tokens (N, L) that are whole numbers, with −1 for padding, or vectors
            (N, L, C), with NaN.
    Raises:
        ValueError: If the array is none that can be trained on, or the run has other data or options.
    """
    from scoresde.commands.notebook import load_run
    from scoresde.commands.train import train

    if budget is not None and any(word.startswith("trainer.steps=") for word in overrides):
        raise ValueError(
            f"fit needs one length of training, got budget={budget!r} and trainer.steps: give budget=None."
        )
    arrays = _arrays({"x": x, "condition": condition, "y": label, "image": image, "sequence": sequence})
    path = Path(tempfile.mkdtemp(prefix="scoresde-")) / "run" if run is None else Path(run)
    config = recipe(arrays, overrides)
    config["data"]["path"] = str(_kept(path, arrays))
    size = len(arrays["x"]) - int(len(arrays["x"]) * config["data"]["test_fraction"] + 0.5)
    config |= {
        "run": str(path), "budget": budget, "seed": seed, "device": device, "conditional": label is not None,
        "batch_size": min(config["batch_size"], max(size, 1)),
    }  # fmt: skip
    train(config)
    model = load_run(path, device=device)
    if run is None:
        weakref.finalize(model, shutil.rmtree, path.parent, ignore_errors=True)
    return model


def recipe(arrays: dict[str, NDArray[Any]], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration of `train.py` for examples of this shape and type, without their place."""
    from scoresde.data import array

    x, own = arrays["x"], []
    kind = {3: "series", 4: "image", 5: "volume"}.get(x.ndim, "table")
    words = [f"experiment={RECIPES[kind]}", "data=array", "logger=csv"]
    if x.dtype == "uint8":
        own.append("data.levels=256")
        if x.ndim == PICTURE and x.shape[-1] in COLOURS and x.shape[1] not in COLOURS:
            own.append("data.channels_last=true")
    check_choices("train", overrides)
    config, taken = composed("train", [*words, *own, *overrides]), {"_target_", *signature(array).parameters}
    return {**config, "data": {key: value for key, value in config["data"].items() if key in taken}}  # not of folders


def composed(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What Hydra makes of these words for `train` or `sample`, as plain values."""
    from hydra import compose, initialize_config_dir

    from scoresde.cli import _plain

    with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"):
        cfg = compose(name, overrides=list(overrides))
    check_keys(name, cfg)
    return _plain(cfg)


def _arrays(given: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """What the data file holds, by the names that `data=array` has for it."""
    import numpy as np
    import torch

    arrays = {
        key: value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        for key, value in given.items()
        if value is not None
    }
    for key, value in arrays.items():
        word = {"y": "label"}.get(key, key)
        if value.dtype.kind not in ("biufU" if key == "sequence" else "biuf"):
            raise ValueError(f"fit needs {word} to be numbers, got {value.dtype} of shape {value.shape}.")
        if value.ndim == 0 or len(value) != len(np.atleast_1d(arrays["x"])):
            raise ValueError(f"fit needs one {word} per example, {len(np.atleast_1d(arrays['x']))}, got {value.shape}.")
    return arrays


def _kept(run: Path, arrays: dict[str, NDArray[Any]]) -> Path:
    """The file of a run that holds the data, written unless it is there.

    Raises:
        ValueError: If it holds others.
    """
    import numpy as np

    path = (run / "data.npz").resolve()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)  # type: ignore[arg-type]
        return path
    with np.load(path, allow_pickle=False) as stored:
        same = set(stored.files) == set(arrays) and all(np.array_equal(stored[key], arrays[key]) for key in arrays)
    if not same:
        raise ValueError(f"{path} holds other data than these: choose another run=...")
    return path

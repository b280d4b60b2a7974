"""`task=reflow`: a run's flow trained again on its own pairs of noise and data, which makes its paths straight."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.checks import check_numbers, check_text, check_whole
from scoresde.commands.batches import own_conditions
from scoresde.commands.build import ANY_INTERFACE, ConfigError, build_as
from scoresde.commands.device import pick_device
from scoresde.commands.fill import check_dropout, fill
from scoresde.commands.identity import kept
from scoresde.commands.load import TrainedModel, load_run
from scoresde.commands.origin import Origin
from scoresde.commands.resume import run_path
from scoresde.commands.train import ModelTask, build_model, fit, parameter_groups
from scoresde.data import Dataset, batch_indices
from scoresde.denoiser import Denoiser, NetworkDenoiser
from scoresde.diagnostics import straightness
from scoresde.files import inside
from scoresde.losses import FlowLoss, Pairs, reflow_pairs
from scoresde.noise import stream_generator
from scoresde.parameterization import Parameterization
from scoresde.progress import Progress
from scoresde.sde import SDE
from scoresde.solvers import ProbabilityFlowODE
from scoresde.training import CheckpointError, load_checkpoint, save_checkpoint

PAIRS_FILE = "pairs.pt"
FROM_RUN = ("conditional", "sde", "parameterization", "model", "data", "init")
MEASURED, STEPS = 64, 20  # paths, and steps of each, by which straightness is measured


@dataclass(frozen=True, kw_only=True)
class TrainReflow(ModelTask):
    """The flow of a run, trained on the pairs of noise and data that it makes itself (Liu et al. 2023).

    Starts from the run's averaged weights, and is a run of its own, which knows the flow alone: see `FlowLoss`.

    Args:
        of: The run whose flow is made straight.
        pairs: How many to make, once: they are kept in that run's folder.
        rtol: Tolerance of the flow that makes them.

    References:
        Liu et al., "Flow Straight and Fast", 2023, arXiv:2209.03003.
    """

    of: str | None = None
    pairs: int = 10_000
    rtol: float = 1e-3

    def __post_init__(self) -> None:
        check_text("task=reflow", "of", self.of)
        check_whole("task=reflow", "pairs >= 1", pairs=self.pairs)
        check_numbers("task=reflow", "0 < rtol < 1", rtol=self.rtol)

    def model(self, net: nn.Module, sde: SDE, parameterization: Parameterization) -> Denoiser:
        return NetworkDenoiser(net, sde, parameterization)

    def __call__(self, config: dict[str, Any]) -> dict[str, float]:
        given = [key for key in FROM_RUN if config.get(key)]
        if given:
            raise ConfigError(
                f"reflow takes {' and '.join(given)} from the run named by of=...: leave out {given[0]}=..., and start "
                f"from experiment=toy_reflow."
            )
        if self.of is None:
            raise ConfigError("task=reflow needs of=runs/...: the run whose flow is to be made straight.")
        extensions = [*config["extensions"], ANY_INTERFACE]
        trained = load_run(self.of, device=pick_device(config["device"]), extensions=config["extensions"])
        if not isinstance(trained.denoiser, NetworkDenoiser) or not trained.denoiser.sde.ends_silent:
            raise ConfigError(
                f"task=reflow needs a denoiser whose process ends without signal, and {trained.run.path} is on "
                f"{type(trained.denoiser.sde).__name__}: train with experiment=toy_flow or experiment=digits_flow."
            )
        data = trained.data()
        loss_node = fill({"model": {}, "parameterization": {}, "loss": config["loss"]}, data, labelled=False)["loss"]
        check_dropout(trained.config["model"], loss_node, data)
        loss = build_as(FlowLoss, loss_node, "loss", extensions)
        pairs, cond = pairs_of(trained, data, self, config["seed"])
        if not 1 <= config["batch_size"] <= self.pairs:
            raise ConfigError(f"batch_size={config['batch_size']} needs to be between 1 and task.pairs={self.pairs}.")
        whole = {
            **config, **{key: trained.config.get(key) for key in FROM_RUN}, "loss": loss_node,
            "task": {key: value for key, value in config["task"].items() if key != "of"},
            "init": {"path": str(trained.run.path.resolve()), "weights": trained.weights},
        }  # fmt: skip
        torch.manual_seed(config["seed"])
        model, _ = build_model(self, whole, extensions)
        model.load_state_dict(trained.model.state_dict())
        saved = kept(whole)
        origin = Origin.of(saved, data)
        path = run_path(whole, origin)
        metrics = fit(
            whole, model.to(trained.device), parameter_groups(model), loss, data, path, saved, origin,
            labelled=trained.classes is not None, dequantize=loss.dequantize,
            batch=PairBatches(pairs, cond, config["batch_size"], config["seed"]),
        )  # fmt: skip
        after = load_run(path, device=trained.device, extensions=config["extensions"])
        print(
            f"straightness, relative to the length of the paths: {bend(trained, data):.3g} before, "
            f"{bend(after, data):.3g} after"
        )
        print(f"done: python sample.py run={path} solver=ddim solver.steps=2")
        return metrics


class PairBatches:
    """Batch k of pairs, a function of (seed, k), as `Batches`; the noise is one of the conditions."""

    def __init__(self, pairs: Pairs, cond: dict[str, Tensor], batch_size: int, seed: int) -> None:
        self.pairs, self.cond, self.batch_size, self.seed = pairs, cond, batch_size, seed

    def __call__(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        rows = batch_indices(len(self.pairs.x0), self.batch_size, step, self.seed)
        cond = {name: value[rows] for name, value in self.cond.items()}
        return self.pairs.x0[rows], {"noise": self.pairs.noise[rows], **cond}


def pairs_of(trained: TrainedModel, data: Dataset, task: TrainReflow, seed: int) -> tuple[Pairs, dict[str, Tensor]]:
    """Pairs of a run and their conditions, those of its training examples in turn: from pairs.pt, or made."""
    path = inside(trained.run, trained.run.path / PAIRS_FILE)
    wanted = {"seed": seed, "pairs": task.pairs, "rtol": task.rtol, "weights": trained.weights}
    cond: dict[str, Any] = own_conditions(data, task.pairs, labelled=trained.classes is not None, training=True)
    if (known := _known(path, wanted)) is not None:
        return known, cond
    print(f"making {task.pairs:,} pairs of noise and data with {trained.run.path}, once: kept in {path}")
    solver = ProbabilityFlowODE(rtol=task.rtol, atol=task.rtol)
    with trained.run.locked(), Progress("making pairs", task.pairs, "pairs") as progress:
        pairs = reflow_pairs(
            trained.denoiser, trained.shape, task.pairs, solver=solver, seed=seed, progress=progress.advance, **cond
        )
        save_checkpoint(path, {**wanted, **pairs._asdict()})
    return pairs, cond


def _known(path: Path, wanted: dict[str, Any]) -> Pairs | None:
    """The pairs in a file, if it is whole and they are what is wanted."""
    if not path.is_file():
        return None
    try:
        state = load_checkpoint(path)
        if all(state.get(key) == value for key, value in wanted.items()):
            return Pairs(state["noise"], state["x0"])
    except (CheckpointError, KeyError):
        print(f"{path} is damaged: it is made again.")
    return None


def bend(trained: TrainedModel, data: Dataset) -> float:
    """`straightness` of a run's flow over the mean ‖x_1 − x_0‖², of paths without labels."""
    generator = stream_generator(0, "straightness")
    x = torch.randn(MEASURED, *trained.shape, generator=generator).to(trained.device)
    cond = own_conditions(data, MEASURED, labelled=False)
    denoiser = trained.given(None).given(**{key: value.to(trained.device) for key, value in cond.items()})
    with torch.no_grad():
        moved = x - ProbabilityFlowODE(rtol=1e-2, atol=1e-2)(denoiser, x)
    return float(straightness(denoiser, x, steps=STEPS).mean() / moved.square().flatten(1).sum(1).mean())

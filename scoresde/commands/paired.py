"""Runs whose noise was paired with the data: what they know is a flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scoresde.commands.bounds import ELBO, VLB, LikelihoodReport
from scoresde.commands.build import ConfigError
from scoresde.commands.interfaces import Likelihood
from scoresde.commands.load import TrainedModel
from scoresde.losses.reflow import is_flow
from scoresde.solvers import Solver

REFLOW = "TrainReflow"


def pairs_of_noise(config: Mapping[str, Any]) -> str | None:
    """What paired noise with data in a run of this configuration, for messages; None: they were independent."""
    if str(config["task"].get("_target_")).endswith(f".{REFLOW}"):
        return "task=reflow"
    coupling = (config.get("loss") or {}).get("coupling", "independent")
    return None if coupling == "independent" else f"loss.coupling={coupling}"


def check_flow_only(trained: TrainedModel, solver: Solver | None, likelihood: Likelihood | None) -> None:
    """Raise if a run that knows its flow and no score is to be sampled, or evaluated, by its score.

    Args:
        trained: The run.
        solver: That draws samples, or None.
        likelihood: That is evaluated, or None.
    """
    pairs = pairs_of_noise(trained.config)
    if pairs is None:
        return
    said = f"{trained.run.path} was trained with {pairs}: it knows the flow of its data and not their score, which"
    if solver is not None and not is_flow(solver):
        raise ConfigError(
            f"{said} {type(solver).__name__} with these options needs: use a deterministic solver, as solver=ode or "
            f"solver=ddim."
        )
    if isinstance(likelihood, ELBO | VLB | LikelihoodReport):
        raise ConfigError(f"{said} bounds need: use likelihood=exact or likelihood=hutchinson.")

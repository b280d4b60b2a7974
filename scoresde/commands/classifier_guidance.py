"""`guidance=classifier` of `sample.py`: samples steered by a classifier of noisy data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from scoresde.checks import check_choice, check_numbers, check_text
from scoresde.commands.build import ConfigError
from scoresde.commands.guidance import other_run
from scoresde.commands.interfaces import Guidance, SolverOf, Steering
from scoresde.commands.load import TrainedModel, newest_run
from scoresde.denoiser import Denoiser
from scoresde.guidance import ClassifierGuided, NoisyClassifier, Potential
from scoresde.solvers import GaussianStepSolver, MeanShift, Solver

FORMS = ("score", "mean", "state")


@dataclass(frozen=True, kw_only=True)
class ClassifierGuidance(Guidance):
    """`ClassifierGuided` or `MeanShift` by a classifier of noisy data, which a model without classes can do as well.

    Args:
        scale: 1 would be Bayes' rule with a perfect classifier.
        form: "score": the gradient is added to the score, for every solver. "mean": the means of noisy steps are
            shifted by their variance times the gradient at the mean; "state": by that at x_t, as in the code of
            Dhariwal and Nichol.
        classifier: Run directory of a classifier; None: the newest under runs/.
    """

    scale: float = 3.0
    form: str = "score"
    classifier: str | None = None

    def __post_init__(self) -> None:
        check_numbers("guidance", "-1e9 <= scale <= 1e9", scale=self.scale)
        check_choice("guidance", "form", self.form, FORMS)
        check_text("guidance", "classifier", self.classifier)

    @property
    def classifies(self) -> bool:
        return True

    def __call__(self, trained: TrainedModel) -> Steering:
        if self.form != "score":
            return trained.given
        log_prob = self._log_prob(trained)

        def steering(label: Tensor | None) -> Denoiser:
            return ClassifierGuided(trained.given(label), log_prob(label), self.scale)

        return steering

    def solvers(self, solver: Solver, trained: TrainedModel) -> SolverOf:
        if self.form == "score":
            return lambda label: solver
        noisy, log_prob = shiftable(solver, self.form), self._log_prob(trained)
        return lambda label: MeanShift(solver=noisy, log_prob=log_prob(label), scale=self.scale, at=self.form)

    def _log_prob(self, trained: TrainedModel) -> Callable[[Tensor | None], Potential]:
        """log p(label | x_t) of labels, as the classifier's run has it."""
        path = newest_run(NoisyClassifier).path if self.classifier is None else self.classifier
        other = other_run(path, "classifier", NoisyClassifier, trained)
        classifier = other.model
        assert isinstance(classifier, NoisyClassifier)

        def log_prob(label: Tensor | None) -> Potential:
            assert label is not None  # choose_labels made sure of them
            if int(label.max()) >= classifier.num_classes:
                raise ConfigError(
                    f"label needs whole numbers in 0..{classifier.num_classes - 1}, the classes of {other.run.path}."
                )
            return classifier.log_prob(label)

        return log_prob


def shiftable(solver: Solver, form: str) -> GaussianStepSolver:
    """The solver, if the means of its steps can be shifted.

    Raises:
        ConfigError: If they cannot.
    """
    if isinstance(solver, GaussianStepSolver) and not solver.deterministic:
        return solver
    raise ConfigError(
        f"guidance.form={form} shifts the means of steps that draw noise, as those of solver=ddpm, euler_maruyama, "
        f"reverse_diffusion, or ddim with solver.eta=1, got a {type(solver).__name__}: use guidance.form=score."
    )

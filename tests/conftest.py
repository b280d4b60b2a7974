"""One thread and one seed for every test, a worker for every core, and which tests are slow."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of a worker and of what it starts; torch reads it on import

import pytest
import torch

from scoresde.sde import SDE, VPSDE

# What `pytest -m "not slow"` leaves out, to answer within a minute: files, and tests by how their names begin.
# In the folders of `ONE_PROCESS` it runs tests over all processes for VPSDE alone.
SLOW = (
    "analytic/test_empirical.py::test_streamed_sums",
    "analytic/test_flow.py",
    "commands/test_cli.py::test_a_sample_depends",
    "commands/test_cli.py::test_conditional_sampling",
    "commands/test_cli.py::test_damaged_checkpoints",
    "commands/test_cli.py::test_interrupted_training",
    "commands/test_cli.py::test_training_mistakes",
    "commands/test_cli.py::test_vectors_come_back",
    "commands/test_cli_",
    "commands/test_options.py::test_a_sample",
    "commands/test_options.py::test_every_experiment",
    "commands/test_options.py::test_what_is_mistyped",
    "commands/test_damage.py",
    "covariance/test_head.py::test_a_trained_head",
    "fitting/test_fit.py::test_a_calibration_helps",
    "fitting/test_fit.py::test_fits_follow",
    "fitting/test_fit.py::test_fitted_times_help",
    "fitting/test_fit.py::test_other_processes",
    "guidance/test_guidance.py::test_every_solver_samples",
    "guidance/test_guidance.py::test_likelihood_differentiates",
    "guidance/test_noisy_classifier.py::test_training",
    "integrate/test_adaptive.py::test_conditions_per_sample",
    "integrate/test_adaptive.py::test_parts_of_any_shape",
    "integrate/test_methods.py::test_it_meets_the_tolerance",
    "likelihood/test_dequantization.py::TestLoss",
    "likelihood/test_discrete.py::TestBatches",
    "likelihood/test_discrete.py::TestBounds::test_a_trained_flow",
    "likelihood/test_elbo.py::test_both_forms",
    "likelihood/test_elbo.py::test_standard_errors_cover",
    "likelihood/test_error_bars.py::test_the_flow_s_errors",
    "likelihood/test_error_bars.py::test_the_sde_bound_s_error",
    "likelihood/test_identities.py::test_ode_and_sde_bound",
    "likelihood/test_likelihood.py::test_a_point_has",
    "likelihood/test_likelihood.py::test_exact_trace_takes",
    "likelihood/test_likelihood.py::test_gaussian_data",
    "likelihood/test_likelihood.py::test_hutchinson_is_unbiased",
    "likelihood/test_likelihood.py::test_mixture_data",
    "likelihood/test_likelihood.py::test_thousand_points",
    "noise/test_brownian_path.py::test_euler_maruyama_converges",
    "sde/test_learned.py::test_ancestral_sampling",
    "sde/test_learned.py::test_every_other_kind",
    "sde/test_learned.py::test_log_prob_is",
    "sde/test_learned.py::test_solvers_reach",
    "solvers/test_adams.py::test_observed_orders",
    "solvers/test_exponential_sde.py::test_strong_order",
    "solvers/test_gradients.py::test_a_latent_is_found",
    "solvers/test_gradients.py::test_memory",
    "solvers/test_langevin.py::test_predictor_corrector",
    "solvers/test_multistep.py::test_ipndm_has_its_order",
    "solvers/test_ode.py::test_a_sample_does_not",
    "solvers/test_ode.py::test_gradients_are",
    "solvers/test_ode.py::test_own_and_shared_steps",
    "solvers/test_ode.py::test_ten_times_the_tolerance",
    "solvers/test_orders.py::test_decoding_undoes",
    "solvers/test_orders.py::test_orders_hold_on_a_mixture",
    "solvers/test_orders.py::test_probability_flow",
    "solvers/test_reverse_sde.py::test_adaptive",
    "solvers/test_reverse_sde.py::test_moments_converge",
    "solvers/test_reversible.py::test_many_steps",
    "solvers/test_reversible.py::test_second_order_on",
    "test_benchmarks.py",
    "test_conf.py::test_experiment_composes",
    "test_conf.py::test_sample_composes_with_every",
    "test_diagnostics.py::test_a_wrong_score",
    "test_diagnostics.py::test_the_marginals",
    "test_readme.py::test_example",
    "training/test_loggers.py::test_wandb_stays_offline",
    "training/test_trainer.py::test_a_small_network",
    "training/test_trainer_resume.py::test_sigterm_in_a_process",
)
ONE_PROCESS = ("likelihood/", "solvers/")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """A worker for every core, but none for a single file: that answers sooner, and prints, in this process."""
    return 0 if len(config.args) == 1 and Path(config.args[0].split("::")[0]).is_file() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if " at 0x" in item.nodeid:  # workers would not agree on what there is to run
            raise pytest.UsageError(f"{item.nodeid} has another name in every process: give it ids=closed_forms.name.")
        place = item.nodeid.removeprefix("tests/")
        if place.startswith(SLOW) or (place.startswith(ONE_PROCESS) and _process(item) not in (None, VPSDE)):
            item.add_marker(pytest.mark.slow)


def _process(item: pytest.Item) -> type[SDE] | None:
    """The process that a test is parametrised by."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return next((type(value) for value in values if isinstance(value, SDE)), None)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def work(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a module's runs as the current folder."""
    shutil.copytree(runs / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path

"""Golden comparisons with score_sde (Song et al. 2021), where its rule is kept; docs/solvers.md lists the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closed_forms import FromScore, golden, mixture, name, replay
from torch import Tensor

from scoresde import (
    DDPM,
    SDE,
    VESDE,
    VPSDE,
    AnnealedLangevin,
    DenoisingLoss,
    DiscreteVPSDE,
    EulerMaruyama,
    GaussianDenoiser,
    Interval,
    Kernel,
    Langevin,
    PredictorCorrector,
    ProbabilityFlowODE,
    ReverseDiffusion,
    StepSolver,
    SubVPSDE,
    discrete_times,
    likelihood_weighting,
    simple_weighting,
)

N = 1000
CONTINUOUS = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE()}
TABLE = DiscreteVPSDE(torch.linspace(0.1 / N, 20 / N, N, dtype=torch.float64).tolist())


def close(actual: Tensor, expected: Tensor, rtol: float, atol: float = 0.0) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


# Coefficients


@pytest.mark.parametrize("key", CONTINUOUS)
def test_coefficients(key: str) -> None:
    sde, data = CONTINUOUS[key], golden(f"score_sde_coefficients_{key}.npz")
    t = data["t"]

    close(sde.f(t), data["drift"], 1e-9)
    close(sde.g(t), data["diffusion"], 1e-9)
    close(sde.alpha(t), data["mean_coeff"], 1e-9)
    close(sde.sigma(t), data["std"], 1e-9)
    if key != "ve":
        close(sde.sigma(t), data["std_expm1"], 1e-12)
        close(sde.sigma(t.float()).double(), data["std_expm1"], 1e-6)
        assert float((data["f32_std"] / data["std_expm1"] - 1).abs().max()) > 5e-3  # as shipped
    if key == "subvp":
        close(sde.g(t), data["diffusion_expm1"], 1e-12)
    close(sde.prior_log_prob(data["prior_z"]), data["prior_logp"], 1e-12)
    drawn = sde.prior_sample((8, 3, 4, 4), generator=torch.Generator().manual_seed(1234), dtype=torch.float64)
    close(drawn, data["prior_z"], 1e-12)


@pytest.mark.parametrize("key", CONTINUOUS)
def test_reverse_drift_and_probability_flow(key: str) -> None:
    sde, data = CONTINUOUS[key], golden(f"score_sde_coefficients_{key}.npz")
    t, x = data["t"], torch.ones(200, 1, dtype=torch.float64)
    denoiser = GaussianDenoiser(sde, 0.0, 0.5)

    close(denoiser.score(x, t)[:, 0], data["score_at_x1"], 1e-9)
    close(denoiser.velocity(x, t)[:, 0], data["pf_drift"], 1e-9, 1e-12)
    reverse = sde.drift(x, t)[:, 0] - sde.g(t).square() * denoiser.score(x, t)[:, 0]
    close(reverse, data["rev_drift"], 1e-9, 1e-12)
    close(sde.diffusion(t), data["rev_diffusion"], 1e-9)


def test_discretisation_of_vp_is_the_transition_of_the_table() -> None:
    data = golden("score_sde_coefficients_vp.npz")
    k = torch.floor(data["t"] * (N - 1))
    step = TABLE.transition(k / N, (k + 1) / N)

    close(step.scale - 1, data["disc_f"], 1e-9)
    close(step.std, data["disc_G"], 1e-9)
    nodes = torch.arange(1, N + 1, dtype=torch.float64) / N
    close(torch.tensor(TABLE.betas, dtype=torch.float64), data["discrete_betas"], 1e-12)
    close(TABLE.alpha(nodes).square(), data["alphas_cumprod"], 1e-11)
    close(TABLE.alpha(nodes), data["sqrt_alphas_cumprod"], 1e-11)
    close(TABLE.sigma(nodes), data["sqrt_1m_alphas_cumprod"], 1e-9)


def test_discretisation_of_ve_is_the_transition_between_its_nodes() -> None:
    sde, data = VESDE(), golden("score_sde_coefficients_ve.npz")
    k = torch.floor(data["t"] * (N - 1))
    step = sde.transition((k - 1) / (N - 1), k / (N - 1))
    inner = k > 0  # index 0 goes to σ = 0, which is no state of the process: here that is the denoising call

    close(step.scale - 1, data["disc_f"], 1e-9, 1e-15)
    close(step.std[inner], data["disc_G"][inner], 1e-9)
    close(sde.sigma(torch.zeros_like(k[~inner])), data["disc_G"][~inner], 1e-12)
    close(sde.sigma(torch.arange(N, dtype=torch.float64) / (N - 1)), data["discrete_sigmas"], 1e-12)


def test_discretisation_of_sub_vp_is_eulers() -> None:
    sde, data = SubVPSDE(), golden("score_sde_coefficients_subvp.npz")
    close(sde.f(data["t"]) / N, data["disc_f"], 1e-9)
    close(sde.g(data["t"]) / N**0.5, data["disc_G"], 1e-9)


# Losses


@pytest.mark.parametrize("key", CONTINUOUS)
@pytest.mark.parametrize("probe", ["exact", "wrong"])
@pytest.mark.parametrize("mean", [0, 1])
@pytest.mark.parametrize("likelihood", [0, 1])
def test_continuous_losses(key: str, probe: str, mean: int, likelihood: int) -> None:
    sde, data = CONTINUOUS[key], golden("score_sde_losses.npz")

    def score(x: Tensor, t: Tensor) -> Tensor:
        alpha, std = sde.alpha(t)[:, None, None, None], sde.sigma(t)[:, None, None, None]
        if probe == "exact":
            return -x / (0.49 * alpha.square() + std.square())
        return -1.3 * x / (0.8 * alpha.square() + std.square()) + 0.05 / std

    loss = DenoisingLoss(
        weighting=likelihood_weighting if likelihood else simple_weighting, reduction="mean" if mean else "half_sum"
    )
    t = data["u"] * (1 - 1e-5) + 1e-5
    value = loss.at(FromScore(sde, score), data["x0"], t, data["z"]).mean()
    close(value, data[f"{key}_{probe}_mean{mean}_lw{likelihood}"], 1e-8)


@pytest.mark.parametrize("mean", [0, 1])
def test_legacy_ddpm_loss_is_the_discrete_one(mean: int) -> None:
    data = golden("score_sde_losses.npz")
    t = (data["labels"].double() + 1) / N
    assert torch.equal(discrete_times(TABLE, (data["labels"].double() + 0.5) / N), t)

    def score(x: Tensor, t: Tensor) -> Tensor:
        abar = TABLE.alpha(t).square()[:, None, None, None]
        return -1.1 * x / (0.49 * abar + 1 - abar)  # −net/√(1−ᾱ)

    loss = DenoisingLoss(reduction="mean" if mean else "half_sum")
    value = loss.at(FromScore(TABLE, score), data["x0"], t, data["z"]).mean()
    close(value, data[f"ddpm_mean{mean}"], 1e-8)


@pytest.mark.parametrize("mean", [0, 1])
def test_legacy_smld_loss_is_ve_at_the_nodes_of_its_table(mean: int) -> None:
    sde, data = VESDE(), golden("score_sde_losses.npz")
    t = 1 - data["labels"].double() / (N - 1)  # label 0 is the largest σ

    def score(x: Tensor, t: Tensor) -> Tensor:
        return -1.1 * x / (0.49 + sde.sigma(t).square()[:, None, None, None])

    loss = DenoisingLoss(reduction="mean" if mean else "half_sum")
    close(loss.at(FromScore(sde, score), data["x0"], t, data["z"]).mean(), data[f"smld_mean{mean}"], 1e-8)


# Single steps


def one_step(solver: StepSolver, sde: SDE, score: Tensor, x: Tensor, t: Tensor, s: Tensor, *noises: Tensor) -> Tensor:
    interval = Interval.between(sde, t, s, x)
    return solver.step(FromScore(sde, lambda x, t: score), x, interval, replay(list(noises)), None)[0]


def nodes(key: str, t: Tensor) -> tuple[SDE, Tensor, Tensor]:
    """The process and the step (t, s) of ours that are the reference's table index floor(t (N − 1))."""
    k = torch.floor(t * (N - 1))
    return (TABLE, (k + 1) / N, k / N) if key == "vp" else (VESDE(), k / (N - 1), (k - 1) / (N - 1))


@pytest.mark.parametrize("key", ["vp", "ve"])
@pytest.mark.parametrize("i", range(4))
def test_single_predictor_steps(key: str, i: int) -> None:
    data = {k[3:]: v for k, v in golden(f"score_sde_samplers_{key}.npz").items() if k.startswith(f"t{i}_")}
    x, z, score, zero = data["x"], data["noise1"], data["score"], torch.zeros_like(data["x"])

    step = (CONTINUOUS[key], score, x, data["t"], data["t"] - 1 / N)
    close(one_step(EulerMaruyama(), *step, z), data["euler_maruyama_x"], 1e-7)
    close(one_step(EulerMaruyama(), *step, zero), data["euler_maruyama_mean"], 1e-7)

    sde, t, s = nodes(key, data["t"])
    ancestral = DDPM(variance="large" if key == "vp" else "small")
    if s < 0:  # VE, index 0: a step to σ = 0 is the denoising call
        denoised = FromScore(sde, lambda x, t: score)(x, torch.zeros((), dtype=torch.float64))
        close(denoised, data["reverse_diffusion_mean"], 1e-7)
        close(denoised, data["ancestral_sampling_x"], 1e-7)
        return
    step = (sde, score, x, t, s)
    close(one_step(ReverseDiffusion(), *step, z), data["reverse_diffusion_x"], 1e-7)
    close(one_step(ReverseDiffusion(), *step, zero), data["reverse_diffusion_mean"], 1e-7)
    close(one_step(ReverseDiffusion(eta=0.0), *step), data["reverse_diffusion_pf_x"], 1e-7)
    close(one_step(ancestral, *step, zero), data["ancestral_sampling_mean"], 1e-7)
    close(one_step(ancestral, *step, z), data[f"ancestral_sampling_{'x' if s > 0 or key == 've' else 'mean'}"], 1e-7)


@pytest.mark.parametrize("key", ["vp", "ve"])
def test_predictor_steps_with_another_time_for_every_sample(key: str) -> None:
    data = {k[5:]: v for k, v in golden(f"score_sde_samplers_{key}.npz").items() if k.startswith("mixt_")}
    exact = mixture(CONTINUOUS[key])
    x, z, score = data["x"], data["noise"], exact.score(data["x"], data["t"])
    zero = torch.zeros_like(x)

    step = (CONTINUOUS[key], score, x, data["t"], data["t"] - 1 / N)
    close(one_step(EulerMaruyama(), *step, z), data["euler_maruyama_x"], 1e-7)
    close(one_step(EulerMaruyama(), *step, zero), data["euler_maruyama_mean"], 1e-7)

    sde, t, s = nodes(key, data["t"])
    keep = s >= 0
    step = (sde, score[keep], x[keep], t[keep], s[keep])
    ancestral = DDPM(variance="large" if key == "vp" else "small")
    noisy = s[keep] > 0 if key == "vp" else s[keep] >= 0
    close(one_step(ReverseDiffusion(), *step, z[keep]), data["reverse_diffusion_x"][keep], 1e-7)
    close(one_step(ancestral, *step, zero[keep]), data["ancestral_sampling_mean"][keep], 1e-7)
    close(one_step(ancestral, *step, z[keep])[noisy], data["ancestral_sampling_x"][keep][noisy], 1e-7)


class Index(SDE):
    """The reference's N-step chain: its table for discretised steps, its times linspace(eps, 1, N) for the rest.

    Index k is the step from τ = (k + 1)/N to k/N, so `uniform_grid` with t_end = 0 walks through all N indices.
    """

    def __init__(self, sde: VPSDE | VESDE, steps: int, eps: float, *, table: bool) -> None:
        self.sde, self.steps, self.table = sde, steps, table
        self.times = torch.linspace(eps, 1, steps, dtype=torch.float64)
        betas = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
        self.chain = DiscreteVPSDE(betas.tolist()) if isinstance(sde, VPSDE) else None

    def time_of(self, tau: Tensor) -> Tensor:
        return self.times[(tau * self.steps).round().long() - 1]

    def alpha(self, tau: Tensor) -> Tensor:
        return torch.ones_like(tau) if self.chain is None else self.chain.alpha(tau)

    def sigma(self, tau: Tensor) -> Tensor:
        if not self.table:
            return self.sde.sigma(self.time_of(tau))
        if self.chain is not None:
            return self.chain.sigma(tau)
        k = (tau * self.steps).round() - 1
        return torch.where(k < 0, 0, self.sde.sigma(k / (self.steps - 1)))

    def f(self, tau: Tensor) -> Tensor:
        return self.sde.f(self.time_of(tau))

    def g(self, tau: Tensor) -> Tensor:
        return self.sde.g(self.time_of(tau))

    def transition(self, t: Tensor, s: Tensor) -> Kernel:
        if self.chain is not None:
            return self.chain.transition(t, s)
        return Kernel(torch.ones_like(t), (self.sigma(s).square() - self.sigma(t).square()).sqrt())


class AtItsOwnTime(FromScore):
    """The exact mixture score of the continuous process, asked at the reference's time of an index."""

    def __init__(self, sde: Index) -> None:
        exact = mixture(sde.sde)
        super().__init__(sde, lambda x, tau: exact.score(x, sde.time_of(tau)))


@pytest.mark.parametrize("key", ["vp", "ve"])
@pytest.mark.parametrize("i", range(4))
def test_single_corrector_steps(key: str, i: int) -> None:
    data = {k[3:]: v for k, v in golden(f"score_sde_samplers_{key}.npz").items() if k.startswith(f"t{i}_")}
    exact, k = mixture(CONTINUOUS[key]), torch.floor(data["t"] * (N - 1))
    noises = (data["noise1"], data["noise2"])
    sde = Index(CONTINUOUS[key], N, 1e-3, table=False)  # type: ignore[arg-type]
    sde.times[int(k)] = data["t"]
    tau, below = (k + 1) / N, k / N

    for inner in (1, 2):
        ald = AnnealedLangevin(snr=0.16, inner_steps=inner)
        x, _ = ald.step(
            AtItsOwnTime(sde), data["x"], Interval.between(sde, tau, below, data["x"]), replay(list(noises)), None
        )
        close(x, data[f"ald_n{inner}_x"], 1e-7)

    # Langevin: the reference's step comes from norms averaged over the batch, ours from each sample's own.
    z, score = noises[0].flatten(1), exact.score(data["x"], data["t"]).flatten(1)
    kept = sde.transition(below, tau).scale.square()  # 1 − β_k for VP, 1 for VE
    theirs = 2 * kept * (0.16 * z.norm(dim=1).mean() / score.norm(dim=1).mean()).square()
    close(data["x"].flatten(1) + theirs * score, data["langevin_n1_mean"].flatten(1), 1e-7)
    for row in range(0, 16, 5):
        e = 2 * kept * (0.16 * z[row].norm() / score[row].norm()).square()
        alone = slice(row, row + 1)
        solver = Langevin(snr=0.16, max_ratio=float("inf"))
        x, _ = solver.step(
            AtItsOwnTime(sde),
            data["x"][alone],
            Interval.between(sde, tau, below, data["x"][alone]),
            replay([noises[0][alone]]),
            None,
        )
        close(x.flatten(), data["x"][row].flatten() + e * score[row] + (2 * e).sqrt() * z[row], 1e-10)


# Whole runs


@pytest.mark.parametrize("key, eps", [("vp", 1e-3), ("ve", 1e-5)])
@pytest.mark.parametrize(
    "run, table, solver",
    [
        ("euler_maruyama+none", False, EulerMaruyama()),
        ("reverse_diffusion+none", True, ReverseDiffusion()),
        ("reverse_diffusion_pf+none", True, ReverseDiffusion(eta=0.0)),
        ("ancestral_sampling+none", True, DDPM()),
        ("none+ald", False, AnnealedLangevin(snr=0.16)),
    ],
    ids=name,
)
def test_whole_runs_of_fifty_steps(key: str, eps: float, run: str, table: bool, solver: Any) -> None:
    data = {k.split("_", 1)[1]: v for k, v in golden(f"score_sde_samplers_{key}.npz").items() if k.startswith("pc50")}
    sde = Index(CONTINUOUS[key], 50, eps, table=table)  # type: ignore[arg-type]
    close(sde.times.flip(0), data["timesteps"], 1e-12)
    start, noises = data[f"{run}_xT"], data[f"{run}_noises"]
    if isinstance(solver, DDPM):
        solver = DDPM(variance="large" if key == "vp" else "small")
    denoiser = AtItsOwnTime(sde)
    states = list(type(solver)(**{**vars(solver), "steps": 50, "t_end": 0.0, "denoise": False}).trajectory(
        denoiser, start, noise=replay(noises)
    ))  # fmt: skip

    scale = float(data[f"{run}_noisy"].abs().max())
    last_is_noiseless = isinstance(solver, DDPM)  # ours, at σ_s = 0; the reference adds √β_0 z for VP
    expected = data[f"{run}_denoised"] if last_is_noiseless else data[f"{run}_noisy"]
    close(states[-1].x, expected, 1e-5, 1e-9 * scale)
    if run != "none+ald":  # its "denoised" state is the mean of the last predictor step
        x = states[-2].x
        zero = replay([torch.zeros_like(x)])
        t, s = (torch.tensor(v, dtype=torch.float64) for v in (1 / 50, 0.0))
        close(
            solver.step(denoiser, x, Interval.between(denoiser, t, s, x), zero, None)[0],
            data[f"{run}_denoised"],
            1e-5,
            1e-9 * scale,
        )


def test_predictor_corrector_draws_corrector_noise_first() -> None:
    """The pc50 Langevin runs cannot be replayed (norms over the batch): the order of the loop is checked on ALD."""
    sde = Index(VPSDE(), 50, 1e-3, table=True)
    denoiser = AtItsOwnTime(sde)
    x, noises = torch.randn(8, 2, dtype=torch.float64), torch.randn(100, 8, 2, dtype=torch.float64)
    solver = PredictorCorrector(
        predictor=ReverseDiffusion(), corrector=AnnealedLangevin(), steps=50, t_end=0.0, denoise=False
    )
    y = solver(denoiser, x, noise=replay(noises))

    for i, k in enumerate(range(49, -1, -1)):
        t, beta = sde.times[k], torch.tensor(sde.chain.betas[k], dtype=torch.float64)  # type: ignore[union-attr]
        tau = torch.tensor((k + 1) / 50, dtype=torch.float64)
        e = 2 * (1 - beta) * (0.16 * sde.sigma(tau)).square()
        score = mixture(VPSDE()).score
        x = x + e * score(x, t) + (2 * e).sqrt() * noises[2 * i]
        x = (2 - (1 - beta).sqrt()) * x + beta * score(x, t) + beta.sqrt() * noises[2 * i + 1]
    close(y, x, 1e-9)


@pytest.mark.parametrize("key", ["vp", "ve"])
def test_ode_sampler_against_the_exact_flow(key: str) -> None:
    data = golden(f"score_sde_samplers_{key}.npz")
    solver = ProbabilityFlowODE(t_end=float(data["ode_eps"]), denoise=False, rtol=1e-5, atol=1e-5)

    y = solver(mixture(CONTINUOUS[key]), data["ode_xT"].double())
    assert float((y - data["ode_x_exact"]).abs().max()) < 1e-3
    single = solver(mixture(CONTINUOUS[key]), data["ode_xT"])
    assert single.dtype == torch.float32 and float((single - data["ode_x_exact"]).abs().max()) < 1e-3

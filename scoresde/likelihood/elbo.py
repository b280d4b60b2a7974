"""Bounds on the likelihood of the reverse SDE, by Girsanov's theorem: denoising or divergence form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_whole
from scoresde.denoiser import Denoiser, check_signal
from scoresde.denoiser.inference_mode import differentiates
from scoresde.likelihood.bound import Bound
from scoresde.likelihood.chain import checked_start, prior_kl
from scoresde.likelihood.decoder import Decoder, gaussian_decoder
from scoresde.likelihood.intervals import pooled_freedom
from scoresde.sde import SDE, expand
from scoresde.sde.clock import SignalClock

KNOTS = 9  # of what the examples of a batch have in common in a cell of noise levels


@differentiates
@torch.no_grad()
def elbo(
    denoiser: Denoiser,
    x: Tensor,
    *,
    form: str = "dsm",
    samples: int = 1,
    sampling: str = "stratified",
    t_start: float | None = None,
    below: str = "decoder",
    decoder: Decoder = gaussian_decoder,
    probe: str = "rademacher",
    generator: torch.Generator | None = None,
) -> Bound:
    """Lower bound of the log-likelihood of the reverse SDE, the T → ∞ limit of `vlb`.

        below="decoder": x is x0
        −log p(x0) ≤ KL(q(x_1 | x0) ‖ π) + ½ ∫ E‖ε − ε̂‖² d logsnr − E log p(x0 | x_ε)          (Kingma et al. 2021)

        below="density": x is x_ε, ε = t_start
        −log p_ε(x) ≤ −E log π(x_1) + ½ ∫ E[g² (‖s‖² + 2 div s) − 2 div f] dt         (Song et al. 2021, Huang et al.)

    with x_t ~ q(x_t | x) and s the model's score. Both bound the density that the reverse SDE with this score
    generates, not that of its probability flow, whose −log p may be larger.

    Times are uniform in logsnr: g² dt = −σ² d logsnr for every linear process, so the integrand is ‖ε − ε̂‖² or
    ‖ε̂‖² − 2σ div ε̂, bounded at both ends. Where div ε̂ enters, the integral for N(0, I) data, known in closed form, is
    taken out, and only what ε̂ adds to theirs is estimated. All goes through v̂ = α ε̂ − σ x̂0, ν² = α² + σ²:

        ε − ε̂ = (α/ν²)(v − v̂)           ε̂ = σ x/ν² + (α/ν²) v̂, of which the first part is that of N(0, I) data

    Where a process ends without signal, logsnr falls to −∞ and times are uniform in 2 log(α/σ + 0.01) (`SignalClock`),
    on which the integrand is bounded for networks that predict x0, v or a velocity; for one of ε the bound is infinite.

        form="dsm"  E[div ε̂] = E[ε̂ᵀ z]/b for x_t = a x + b z, as ‖ε − ε̂‖² − ‖ε‖² has it. From x_ε, where b → 0, each
                    draw is a pair ±z: (ε̂₊ − ε̂₋)ᵀ z/(2b) has a finite variance, for two network calls
        form="ssm"  E[div ε̂] by Hutchinson's estimator: one network call and one backward pass

    Args:
        denoiser: The model.
        x: Data in the model's own scaling, (B, *), float32 or float64.
        form: "dsm" or "ssm"; the same number in expectation.
        samples: Draws of (t, noise) per example. Intervals hold what they promise from about 16 on: with a few
            draws the noise levels that carry the integral may all be missed.
        sampling: How times are drawn. "stratified": the range of logsnr falls into samples/2 cells with two draws each
            (an odd one out makes three), whose differences give the standard error; "antithetic": one draw
            shifted by multiples of 1/samples (arXiv:2107.00630, App. I.1), whose true error is below the standard error
            given. Either way the examples of a batch share out their cells.
        t_start: ε; None is the SDE's t_min.
        below: What x is, see above.
        decoder: p(x0 | x_ε) about x̂0 with standard deviation σ_ε/α_ε.
        probe: "rademacher" or "gaussian", for "ssm".
        generator: For all draws, on x's device.
    Returns:
        A `Bound` with terms "prior" (−E log π(x_1), or the KL), "diffusion" and, with a decoder, "reconstruction".

    References:
        Song et al., "Maximum Likelihood Training of Score-Based Diffusion Models", 2021, arXiv:2101.09258.
        Huang et al., "A Variational Perspective on Diffusion-Based Generative Models", 2021, arXiv:2106.02808.
        Kingma et al., "Variational Diffusion Models", 2021, arXiv:2107.00630.
    """
    check_elbo("elbo", form, samples, sampling, below, probe)
    check_signal(denoiser)
    path = ForwardPath(denoiser.sde, x, t_start, below)
    rows, places = [], stratified_uniforms(samples, x.shape[0], sampling, generator, x.device)
    for u in places:
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        t = path.time(u)
        if form == "ssm":
            value = _divergence_integrand(denoiser, path, t, z, random_probe(z, probe, generator))
        elif below == "density":
            value = _paired_integrand(denoiser, path, t, z)
        else:
            value = path.error(t, z, denoiser.v(path.at(t, z), t))
        rows.append(0.5 * path.range * path.clock.rate(t) * value.double())
    draws = torch.stack(rows)

    terms = {"prior": path.prior(), "diffusion": draws.mean(0)}
    if form == "ssm" or below == "density":
        terms["diffusion"] = terms["diffusion"] + path.gaussian()
    calls = samples * (2 if form == "dsm" and below == "density" else 1)
    if below == "decoder":
        nll = torch.stack([path.reconstruction(denoiser, decoder, generator) for _ in range(samples)])
        terms["reconstruction"] = nll.mean(0)
        draws, calls = draws + nll, calls + samples
    total = torch.stack(list(terms.values())).sum(0)
    std_error, freedom = cell_std_error(draws)
    mean_error = _mean_error(draws, places)
    return Bound(
        -total.to(x.dtype),
        std_error.to(x.dtype),
        {key: value.to(x.dtype) for key, value in terms.items()},
        torch.full((x.shape[0],), calls, device=x.device),
        freedom,
        mean_error.to(x.dtype),
    )


class ForwardPath:
    """The forward process from what is known, x0 or x_ε: x_t = a x + b z."""

    def __init__(self, sde: SDE, x: Tensor, t_start: float | None, below: str) -> None:
        self.sde, self.x, self.below = sde, x, below
        start = checked_start("elbo", sde, t_start)
        self.start, self.end = torch.tensor([start, 1.0], dtype=torch.float64, device=x.device)
        self.clock = SignalClock(sde)
        self.high, self.low = self.clock.at(self.start), self.clock.at(self.end)
        self.range = self.high - self.low
        if not bool((self.range > 0) & self.range.isfinite()):
            raise ValueError(
                f"elbo needs noise at the data end: σ is 0 at t_start={start:g} of {type(sde).__name__}. Use t_start "
                f"between 0 and 1, for example 1e-5."
            )

    def time(self, u: Tensor) -> Tensor:
        """The time at which the clock is a share u of its range above that of t = 1; float64."""
        return self.clock.time(self.low + self.range * u).clamp(self.start, self.end)

    def kernel(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """a and b, shape of t."""
        return (self.sde.alpha(t), self.sde.sigma(t)) if self.below == "decoder" else self.sde.transition(self.start, t)

    def at(self, t: Tensor, z: Tensor) -> Tensor:
        a, b = self.kernel(t)
        return expand(a, z) * self.x + expand(b, z) * z

    def shares(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """σ/ν² and α/ν², of x and v̂ in ε̂; they broadcast against x."""
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        norm = alpha.square() + sigma.square()
        return expand(sigma / norm, self.x), expand(alpha / norm, self.x)

    def error(self, t: Tensor, z: Tensor, v: Tensor) -> Tensor:
        """‖ε − ε̂‖² from x0, for the answer v̂ at `at(t, z)`; (B,)."""
        alpha, sigma = expand(self.sde.alpha(t), z), expand(self.sde.sigma(t), z)
        return (self.shares(t)[1] * (alpha * z - sigma * self.x - v)).square().flatten(1).sum(1)

    def prior(self) -> Tensor:
        """KL(q(x_1 | x0) ‖ π), or −E log π(x_1) given x_ε; (B,) in float64."""
        if self.below == "decoder":
            return prior_kl(self.sde, self.x.double(), self.end)
        energy, pi = self._end_energy(), self.sde.prior_std
        return 0.5 * energy / pi**2 + self._entries * (0.5 * math.log(2 * math.pi) + math.log(pi))

    def gaussian(self) -> Tensor:
        """The diffusion term for the exact score of N(0, I) data, (B,) in float64.

        x0    ½ ∫ E‖ε − c x_t‖² d logsnr = ½ [d (log(1 + SNR) − q) + q ‖x0‖²],  q = SNR/(1 + SNR), between the ends
        x_ε   −log N(x_ε; 0, α_ε² + σ_ε²) + E log N(x_1; 0, α_1² + σ_1²): with the exact score the bound is tight
        """
        square = self.x.double().flatten(1).square().sum(1)
        if self.below == "decoder":
            ends = self.sde.logsnr(torch.stack([self.start, self.end]))
            share, grown = -torch.sigmoid(ends).diff(), -torch.nn.functional.softplus(ends).diff()
            return 0.5 * (self._entries * (grown - share) + share * square)
        first, last = (self.sde.alpha(t).square() + self.sde.sigma(t).square() for t in (self.start, self.end))
        return 0.5 * (square / first - self._end_energy() / last + self._entries * (first / last).log())

    def reconstruction(self, denoiser: Denoiser, decoder: Decoder, generator: torch.Generator | None) -> Tensor:
        """−log p(x0 | x_ε) for one draw, (B,) in float64."""
        z = torch.randn(self.x.shape, generator=generator, dtype=self.x.dtype, device=self.x.device)
        std = self.sde.sigma(self.start) / self.sde.alpha(self.start)
        return -decoder(self.x, denoiser(self.at(self.start, z), self.start), std).double()

    @property
    def _entries(self) -> int:
        return self.x[0].numel()

    def _end_energy(self) -> Tensor:
        """E‖x_1‖² given x, (B,)."""
        a, b = self.kernel(self.end)
        return a.square() * self.x.double().flatten(1).square().sum(1) + b.square() * self._entries


def _divergence_integrand(denoiser: Denoiser, path: ForwardPath, t: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """‖ε̂‖² − 2σ div ε̂ less that of N(0, I) data at x_t, with div v̂ ≈ wᵀ(∂v̂/∂x)w; (B,)."""
    with torch.enable_grad():
        x = path.at(t, z).requires_grad_()
        v = denoiser.v(x, t)
    (pulled,) = torch.autograd.grad(v, x, w)
    of_x, of_v = path.shares(t)
    x, added = x.detach(), of_v * v.detach()
    each = added * (2 * of_x * x + added) - 2 * expand(path.sde.sigma(t), z) * of_v * w * pulled
    return each.flatten(1).sum(1)


def _paired_integrand(denoiser: Denoiser, path: ForwardPath, t: Tensor, z: Tensor) -> Tensor:
    """The same with div v̂ ≈ (v̂(a x + b z) − v̂(a x − b z))ᵀ z/(2b), averaged over both points; (B,)."""
    (of_x, of_v), b = path.shares(t), expand(path.kernel(t)[1], z)
    up, down = path.at(t, z), path.at(t, -z)
    v_up, v_down = of_v * denoiser.v(up, t), of_v * denoiser.v(down, t)
    squares = v_up * (2 * of_x * up + v_up) + v_down * (2 * of_x * down + v_down)
    slope = (v_up - v_down) / (2 * b.clamp_min(torch.finfo(z.dtype).tiny))
    return (0.5 * squares - 2 * expand(path.sde.sigma(t), z) * slope * z).flatten(1).sum(1)


def stratified_uniforms(
    samples: int, batch: int, sampling: str, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Positions in the range of logsnr, each uniform on [0, 1) by itself; float64, (samples, B)."""
    share = torch.stack([torch.randperm(batch, generator=generator, device=device) for _ in range(samples)])
    share = (share + torch.rand(share.shape, generator=generator, dtype=torch.float64, device=device)) / batch
    if sampling == "antithetic":
        return (torch.arange(samples, device=device)[:, None] + share[:1]) / samples
    sizes = _cells(samples)
    size = torch.tensor([size for size in sizes for _ in range(size)], device=device)[:, None]
    first = torch.tensor([2 * cell for cell, size in enumerate(sizes) for _ in range(size)], device=device)[:, None]
    return (first + size * share) / samples


def _cells(samples: int) -> list[int]:
    """How many draws fall into each cell of the stratification: two, three in the last if the number is odd."""
    pairs = max(samples // 2, 1)
    return [2] * (pairs - 1) + [samples - 2 * (pairs - 1)]


def cell_std_error(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Of the mean over draws (samples, B) ordered by cell, and its degrees of freedom.

    A cell of n draws adds n s²/samples² to the variance, s² the variance in it.
    """
    samples = len(draws)
    if samples == 1:
        return torch.full_like(draws[0], math.nan), torch.ones_like(draws[0])
    cells = draws.split(_cells(samples))
    sizes = torch.tensor([len(cell) for cell in cells], device=draws.device)[:, None]
    variances = sizes * torch.stack([cell.var(0) for cell in cells]) / samples**2
    return variances.sum(0).sqrt(), pooled_freedom(variances, sizes - 1)


def _mean_error(draws: Tensor, places: Tensor) -> Tensor:
    """Every example's part in the error of the batch's mean, (B,), from draws (samples, B) ordered by cell.

    As `cell_std_error`, but of what is left of the draws in a cell without g(u), a piecewise linear function that all
    examples have in common: together they visit all noise levels, so that g's average has next to no error.
    """
    samples, batch = draws.shape
    if samples == 1:
        return torch.full_like(draws[0], math.nan)
    knots = max(1, min(KNOTS, batch // 4))
    total, first = torch.zeros_like(draws[0]), 0
    for size in _cells(samples):
        values, at = draws[first : first + size], (places[first : first + size] * samples - first) / size
        hats = (1 - (at[..., None] * (knots - 1) - torch.arange(knots, device=at.device)).abs()).clamp_min(0)
        values, hats = values - values.mean(0), hats - hats.mean(0)
        curve = torch.linalg.pinv(hats.flatten(0, 1), rtol=1e-9) @ values.flatten()
        left = (values - hats @ curve).square().sum(0) / (size - 1)
        total += size * left / samples**2 / (1 - (knots - 1) / (batch * (size - 1)))
        first += size
    return total.sqrt()


def random_probe(x: Tensor, probe: str, generator: torch.Generator | None) -> Tensor:
    """ "rademacher" or "gaussian" entries for x, (B, *)."""
    if probe == "gaussian":
        return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return torch.randint(0, 2, x.shape, generator=generator, device=x.device).to(x.dtype) * 2 - 1


def check_elbo(
    owner: str, form: str, samples: int, sampling: str, below: str = "decoder", probe: str = "rademacher"
) -> None:
    """Raise one sentence if the arguments of `elbo` make no sense."""
    check_choice(owner, "form", form, ("dsm", "ssm"))
    check_choice(owner, "sampling", sampling, ("stratified", "antithetic"))
    check_choice(owner, "below", below, ("decoder", "density"))
    check_choice(owner, "probe", probe, ("rademacher", "gaussian"))
    check_whole(owner, "samples >= 1", samples=samples)

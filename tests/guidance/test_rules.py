"""Rules of guidance: their laws on Gaussians, the papers' algorithms written out, and what they cost."""

import itertools
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde import (
    DDIM,
    EDM,
    MLP,
    VESDE,
    VPSDE,
    Composed,
    Denoiser,
    DPMSolverPP2M,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    Guided,
    NCSNpp,
    NetworkDenoiser,
    ProbabilityFlowODE,
    StraightSDE,
    log_prob,
    logsnr_grid,
)
from scoresde.guidance import APG, CFGPP, CosineScale, Mixture, PowerScale

VP = VPSDE(t_min=1e-4)
V, V_REF = 0.25, 0.8
CONDITIONAL, REFERENCE = GaussianDenoiser(VP, 0.0, V**0.5), GaussianDenoiser(VP, 0.0, V_REF**0.5)
NEAR, WIDE = GaussianDenoiser(VP, 0.0, 0.3**0.5), GaussianDenoiser(VP, 0.0, 2.0)


def flow_slope(parts: dict[float, float]) -> float:
    """Of x_1 -> x at t_min under the flow of Σ w x̂0 over parts {variance: w}, Σ w = 1.

    In y = x/α, s = σ/α: dy/ds = s Σ w y/(v + s²), so that y² grows as Π (v + s²)^w.
    """
    end, start = (torch.tensor(t, dtype=torch.float64) for t in (VP.t_min, 1.0))

    def log_y(t: Tensor) -> float:
        s = VP.sigma(t) / VP.alpha(t)
        return 0.5 * sum(w * math.log(v + float(s) ** 2) for v, w in parts.items())

    return float(VP.alpha(end) / VP.alpha(start)) * math.exp(log_y(end) - log_y(start))


@pytest.mark.parametrize(
    "guided, parts",
    [
        (Guided(CONDITIONAL, REFERENCE, 2.0), {V: 2.0, V_REF: -1.0}),
        (Guided(CONDITIONAL, REFERENCE, -0.5), {V: -0.5, V_REF: 1.5}),
        (APG(CONDITIONAL, REFERENCE, 3.0), {V: 1.0}),  # all guidance is along x̂0
        (APG(CONDITIONAL, REFERENCE, 3.0, eta=0.5), {V: 2.0, V_REF: -1.0}),
        (Guided(CONDITIONAL, NEAR, 2.0, rescale=1.0), {V: 1.0}),  # x̂0 times a positive number before
        (Composed(REFERENCE, [CONDITIONAL, WIDE], [0.7, 0.4]), {V_REF: -0.1, V: 0.7, 4.0: 0.4}),
    ],
    ids=["cfg", "negative", "apg", "apg-half", "rescaled", "composed"],
)  # fmt: skip
def test_the_flow_and_its_density_on_gaussians(guided: Denoiser, parts: dict[float, float]) -> None:
    x, slope = torch.randn(2, 2, dtype=torch.float64), flow_slope(parts)
    ends = ProbabilityFlowODE(method="rk4", steps=50, denoise=False)(guided, x)
    torch.testing.assert_close(ends, slope * x, rtol=1e-6, atol=0)


def test_log_prob_of_a_guided_model_is_that_of_its_flow() -> None:
    slope = flow_slope({V: 2.0, V_REF: -1.0})
    x = slope * torch.randn(2, 2, dtype=torch.float64)
    found = log_prob(Guided(CONDITIONAL, REFERENCE, 2.0), x, divergence="exact", method="rk4", steps=50).log_prob
    exact = torch.distributions.Normal(0, torch.tensor(slope, dtype=torch.float64)).log_prob(x).sum(1)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)


def test_the_guided_variance_is_no_sharpened_density() -> None:
    """v (v/v_ref)^w for a process that begins with noise alone, not 1/((1 + w)/v − w/v_ref)."""
    w, start = 1.0, 1 / float(VP.alpha(torch.ones((), dtype=torch.float64)))
    variance = flow_slope({V: 1 + w, V_REF: -w}) ** 2 * ((V + start**2) ** (1 + w) / (V_REF + start**2) ** w) / start**2
    assert variance == pytest.approx(V * (V / V_REF) ** w, rel=1e-2)
    assert abs(variance * ((1 + w) / V - w / V_REF) - 1) > 0.4


@pytest.mark.parametrize("scale", [0.6, 1.0])
@pytest.mark.parametrize("sde", [VPSDE(), StraightSDE()], ids=lambda sde: type(sde).__name__)
def test_cfgpp_is_the_papers_algorithm(sde: Any, scale: float) -> None:
    """Algorithm 2: x̂0 from the guided ε̂, noised again with the unconditional one."""
    wanted, reference = GaussianDenoiser(sde, 1.0, 0.5), GaussianDenoiser(sde, 0.0, 1.0)
    x = torch.randn(5, 3, dtype=torch.float64)
    solver = DDIM(steps=7)
    states = list(solver.trajectory(CFGPP(wanted, reference, scale), x))
    x = states[1].x if sde.ends_silent else x  # ε̂ says nothing where there is no signal
    for before, after in list(itertools.pairwise(states))[sde.ends_silent :]:
        t = before.t
        free = reference.eps(x, t)
        guided = free + scale * (wanted.eps(x, t) - free)
        clean = (x - sde.sigma(t) * guided) / sde.alpha(t)
        to_data = after.index == len(states) - 1
        x = clean if to_data else sde.alpha(after.t) * clean + sde.sigma(after.t) * free
        torch.testing.assert_close(after.x, x, rtol=1e-9, atol=1e-9)
    if scale == 0.6:
        back = solver.encode(CFGPP(wanted, reference, scale), x)
        assert bool(back.isfinite().all())


def test_cfgpp_says_where_it_makes_sense() -> None:
    guided, x = CFGPP(CONDITIONAL, REFERENCE, 0.5), torch.randn(2, 3)
    for ask in (lambda: guided(x, 0.5), lambda: ProbabilityFlowODE()(guided, x), lambda: log_prob(guided, x)):
        with pytest.raises(ValueError, match=r"CFGPP is a rule of the steps of DDIM, .* or take Guided"):
            ask()


def test_rescaling_keeps_the_contrast_of_every_sample() -> None:
    x, t = 3 * torch.randn(6, 2, 5, dtype=torch.float64), torch.tensor(0.4)
    wanted, reference = GaussianDenoiser(VP, 1.0, torch.rand(2, 5) + 0.1), GaussianDenoiser(VP, -0.5, 1.0)
    plain, good = Guided(wanted, reference, 4.0)(x, t), wanted(x, t)
    contrast = (good.flatten(1).std(1) / plain.flatten(1).std(1))[:, None, None]
    for share in (0.0, 0.3, 1.0):
        found = Guided(wanted, reference, 4.0, rescale=share)
        torch.testing.assert_close(found(x, t), share * contrast * plain + (1 - share) * plain)
        torch.testing.assert_close(found(x[:1], t), found(x, t)[:1])
    one = Guided(GaussianDenoiser(VP, 1.0), GaussianDenoiser(VP, 0.0), 2.0, rescale=1.0)
    assert bool(one(x[:, 0, :1], t).isfinite().all())  # of a single number nothing varies


def test_apg_leaves_the_part_along_the_prediction() -> None:
    x, t = torch.randn(6, 2, 5, dtype=torch.float64), torch.tensor(0.4)
    wanted, reference = GaussianDenoiser(VP, 1.0, torch.rand(2, 5) + 0.1), GaussianDenoiser(VP, -0.5, 1.0)
    good, change = wanted(x, t).flatten(1), (wanted(x, t) - reference(x, t)).flatten(1)
    moved = APG(wanted, reference, 3.0)(x, t).flatten(1) - good
    torch.testing.assert_close((moved * good).sum(1), torch.zeros(6).double(), rtol=0, atol=1e-12)
    direction = good / good.norm(dim=1, keepdim=True)
    along = (change * direction).sum(1, keepdim=True) * direction
    torch.testing.assert_close(moved, 2 * (change - along))
    torch.testing.assert_close(APG(wanted, reference, 3.0, eta=1.0)(x, t), Guided(wanted, reference, 3.0)(x, t))
    short = APG(wanted, reference, 3.0, eta=1.0, norm=0.5)(x, t).flatten(1) - good
    torch.testing.assert_close(short, 2 * change * (0.5 / change.norm(dim=1, keepdim=True)).clamp(max=1))
    torch.testing.assert_close(APG(wanted, wanted, 3.0, norm=0.5)(x, t), wanted(x, t))  # Δ = 0


@pytest.mark.parametrize("sde", [VPSDE(), StraightSDE()], ids=lambda sde: type(sde).__name__)
def test_a_mixture_of_denoisers_is_the_denoiser_of_the_mixture(sde: Any) -> None:
    weights, means = torch.tensor([0.2, 0.8]), torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
    whole = GaussianMixtureDenoiser(sde, weights, means, torch.full((2, 2), 0.09))
    parts = [GaussianDenoiser(sde, mean, 0.3) for mean in means]
    mixture = Mixture(parts, lambda x, t: torch.stack([p.log_prob(x, t) for p in parts], 1) + weights.log())
    x, t = torch.randn(7, 2, dtype=torch.float64), torch.linspace(0.05, 1, 7, dtype=torch.float64)
    torch.testing.assert_close(mixture(x, t), whole(x, t))
    torch.testing.assert_close(mixture.v(x, t), whole.v(x, t))
    with pytest.raises(ValueError, match=r"one number per sample and part: expected shape \(7, 2\), got \(7,\)"):
        Mixture(parts, lambda x, t: parts[0].log_prob(x, t))(x, t)


@pytest.mark.parametrize("schedule", [PowerScale(noise=0.5, data=4.0, power=2.0), CosineScale(noise=0.5, data=4.0)])
def test_a_scale_that_changes_with_the_noise(schedule: Callable[[Tensor], Tensor]) -> None:
    ends = schedule(torch.tensor([0.0, 1.0, math.inf], dtype=torch.float64))
    middle = 0.5 + 3.5 * (0.25 if isinstance(schedule, PowerScale) else 0.5)  # σ = α
    torch.testing.assert_close(ends, torch.tensor([4.0, middle, 0.5], dtype=torch.float64))
    sde, x = VESDE(sigma_max=20.0), torch.randn(3, 2, dtype=torch.float64)
    good, bad = GaussianDenoiser(sde, 1.0, 0.5), GaussianDenoiser(sde, 0.0, 1.0)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    scale = schedule(sde.sigma(t) / sde.alpha(t))
    guided = Guided(good, bad, schedule)
    torch.testing.assert_close(guided(x, t), Guided(good, bad, scale)(x, t))  # one scale per sample
    torch.testing.assert_close(guided(x, t[1]), Guided(good, bad, scale[1].item())(x, t[1]))
    index = torch.tensor([2, 0])
    part = Guided(good, bad, scale, interval=(0.3, math.inf)).select(index, 3)
    assert part is not None
    torch.testing.assert_close(part(x[index], t[index]), Guided(good, bad, scale, (0.3, math.inf))(x, t)[index])
    constant = Guided(good, bad, PowerScale(noise=3.0, data=3.0))
    torch.testing.assert_close(DDIM(steps=5)(constant, x), DDIM(steps=5)(Guided(good, bad, 3.0), x))


LABEL = torch.tensor([0, 1, 2, 0, 1, 2])
CONDITION = torch.linspace(-1, 1, 12).reshape(6, 2)


@pytest.fixture(scope="module")
def model() -> NetworkDenoiser:
    torch.manual_seed(0)
    net = MLP(shape=(2,), num_classes=3, condition_dim=2, condition_optional=True, width=16, depth=1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return NetworkDenoiser(net, VPSDE(), EDM(sigma_data=1.0)).double().eval().requires_grad_(False)


@contextmanager
def counted(net: nn.Module) -> Iterator[list[int]]:
    """The batch sizes of its calls."""
    calls: list[int] = []
    hook = net.register_forward_pre_hook(lambda net, arguments: calls.append(len(arguments[0])))
    yield calls
    hook.remove()


RULES: dict[str, Callable[[Denoiser, Denoiser], Denoiser]] = {
    "cfg": lambda good, bad: Guided(good, bad, 2.0),
    "rescaled": lambda good, bad: Guided(good, bad, 2.0, rescale=0.5),
    "apg": lambda good, bad: APG(good, bad, 2.0, norm=1.0),
    "cfgpp": lambda good, bad: CFGPP(good, bad, 0.7),
    "composed": lambda good, bad: Composed(bad, [good, good.given()], [0.5, 0.5]),
    "mixture": lambda good, bad: Mixture([good, bad], lambda x, t: x),
}


@pytest.mark.parametrize("rule", RULES)
def test_guided_sampling_is_one_call_of_double_batch_per_step(model: NetworkDenoiser, rule: str) -> None:
    guided = RULES[rule](model.given(label=LABEL, condition=CONDITION), model.given(label=None, condition=None))
    with counted(model.net) as calls:
        DDIM(steps=4, grid=logsnr_grid)(guided, torch.randn(6, 2, dtype=torch.float64))
    assert calls == [18 if rule == "composed" else 12] * 5


@pytest.mark.parametrize(
    "first, second",
    [
        ({"label": LABEL}, {"label": None}),
        ({"label": torch.tensor(1)}, {}),
        ({"label": 2}, {"label": LABEL.to(torch.int32)}),
        ({"label": LABEL, "condition": CONDITION}, {"condition": None}),
        ({"condition": CONDITION[0]}, {"condition": CONDITION, "label": LABEL}),
        ({"condition": CONDITION.float()}, {"condition": None}),
    ],
)
@pytest.mark.parametrize("method", ["forward", "eps", "v", "score"])
def test_together_as_one_by_one(model: NetworkDenoiser, first: Any, second: Any, method: str) -> None:
    x, a, b = torch.randn(6, 2, dtype=torch.float64), model.given(**first), model.given(**second)
    for t in (torch.tensor(0.3), torch.linspace(0.1, 1, 6)):
        alone = [getattr(denoiser, method)(x, t) for denoiser in (a, b)]
        with counted(model.net) as calls:
            found = getattr(Guided(a, b, 3.0), method)(x, t)
        assert calls == [12]
        torch.testing.assert_close(found, alone[1] + 3 * (alone[0] - alone[1]))


def test_an_image_and_a_sequence_are_stacked_too() -> None:
    torch.manual_seed(0)
    parts: Any = {"image": {"channels": 2, "optional": True}, "sequence": {"vocabulary": 5, "optional": True}}
    net = NCSNpp(
        channels=1, image_size=8, width=8, channel_mults=[1], num_res_blocks=1, attention_resolutions=[], **parts
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model, x, t = NetworkDenoiser(net, VPSDE(), EDM(sigma_data=1.0)).eval(), torch.randn(3, 1, 8, 8), torch.tensor(0.4)
    given = {"image": torch.randn(1, 2, 8, 8), "sequence": torch.tensor([[0, 1, 4], [2, -1, -1], [3, 3, 3]])}
    free = {"image": None, "sequence": None}
    with counted(net) as calls:
        found = Guided(model.given(**given), model.given(**free), 3.0)(x, t)
    torch.testing.assert_close(found, 3 * model(x, t, **given) - 2 * model(x, t, **free), rtol=1e-4, atol=1e-4)
    assert calls == [6]


def test_free_conditions_reach_the_branches_and_rows_can_be_chosen(model: NetworkDenoiser) -> None:
    x, t = torch.randn(6, 2, dtype=torch.float64), torch.tensor(0.3)
    guided = Guided(model, model.given(label=None, condition=None), 3.0)
    bound = Guided(model.given(label=LABEL, condition=CONDITION), model, 3.0)
    torch.testing.assert_close(guided(x, t, label=LABEL, condition=CONDITION), bound(x, t))
    rows = torch.tensor([4, 1])
    some = bound.select(rows, 6)
    assert some is not None
    torch.testing.assert_close(some(x[rows], t), bound(x, t)[rows])
    with torch.inference_mode():
        torch.testing.assert_close(bound(x, t), DDIM(steps=1)(bound, x) * 0 + bound(x, t))


def test_bad_guidance_is_named(model: NetworkDenoiser) -> None:
    x, ve = torch.randn(4, 2), GaussianDenoiser(VESDE())
    for make in (
        lambda: APG(CONDITIONAL, ve, 2.0), lambda: CFGPP(CONDITIONAL, ve, 2.0),
        lambda: Mixture([CONDITIONAL, ve], lambda x, t: x), lambda: Composed(CONDITIONAL, [ve], [1.0]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"combines denoisers at equal \(α, σ\)"):
            make()
    with pytest.raises(ValueError, match=r"Guided needs 0 <= rescale <= 1, got rescale=2"):
        Guided(CONDITIONAL, REFERENCE, 2.0, rescale=2)
    with pytest.raises(ValueError, match=r"APG needs 0 < norm <= inf"):
        APG(CONDITIONAL, REFERENCE, 2.0, norm=0.0)
    with pytest.raises(ValueError, match="Mixture needs at least one part"):
        Mixture([], lambda x, t: x)
    with pytest.raises(ValueError, match="PowerScale needs 0 < power"):
        PowerScale(power=0.0)
    free = model.given(label=None, condition=None)
    for cond, words in (
        ({"label": torch.tensor([0, 1, 2, 7])}, r"labels from 0 to 2, .* got values from 0 to 7"),
        ({"label": torch.tensor([0, 1])}, r"labels of shape \(\) or \(4,\) .* got torch.int64 of shape \(2,\)"),
        ({"label": torch.tensor([0.5, 1, 1, 1])}, r"integer labels"),
        ({"condition": torch.zeros(4, 3)}, r"condition of shape \(4, 2\) .* got \(4, 3\)"),
        ({"condition": torch.zeros(3, 2)}, r"condition of shape \(4, 2\) .* got \(3, 2\)"),
    ):
        with pytest.raises(ValueError, match=words):
            Guided(model.given(**cond), free, 2.0)(x, 0.5)
    bare = NetworkDenoiser(MLP(shape=(2,), condition_dim=2, width=8, depth=1), VPSDE(), EDM(sigma_data=1.0))
    with pytest.raises(ValueError, match="was trained with a condition of 2 numbers and never without"):
        Guided(bare.given(condition=CONDITION[:4]), bare.given(condition=None), 2.0)(x, 0.5)


def test_multistep_solvers_keep_their_order_under_guidance() -> None:
    x = torch.randn(20, 2, dtype=torch.float64)
    guided = Guided(CONDITIONAL, REFERENCE, 2.0)
    exact = flow_slope({V: 2.0, V_REF: -1.0}) * x
    errors = [
        float((DPMSolverPP2M(steps=n, grid=logsnr_grid, denoise=False)(guided, x) - exact).norm()) for n in (40, 80)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.3)


def test_the_lines_of_the_page_run() -> None:
    page = (Path(__file__).parents[2] / "docs/guidance.md").read_text(encoding="utf-8")
    net = MLP(shape=(2,), num_classes=3, width=8, depth=1)
    names: dict[str, Any] = {"model": NetworkDenoiser(net, VPSDE(), EDM()), "classifier": lambda x, t: x[:, [0, 1, 0]]}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(block, names)
    assert names["samples"].shape == (6, 2) and names["posterior"].log_prob.shape == (6, 3)

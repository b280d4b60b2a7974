"""The Wiener filter around a network, and the covariance that it is made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scoresde import EDM, SDE, VESDE, VPSDE, Data, Epsilon, GaussianDenoiser, NCSNpp, NetworkDenoiser, log_prob
from scoresde.models import MLP, WienerFilter
from scoresde.models.karhunen_loeve import karhunen_loeve, rotate, rotate_back

SHAPES = ((5,), (2, 6), (1, 4, 6), (2, 3, 4, 2))


def correlated(shape: tuple[int, ...], count: int = 400) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    entries = torch.Size(shape).numel()
    mixing = torch.randn(entries, entries, generator=generator, dtype=torch.float64) / entries**0.5
    x = torch.randn(count, entries, generator=generator, dtype=torch.float64) @ mixing
    return (x + torch.randn(entries, generator=generator, dtype=torch.float64)).reshape(count, *shape)


def covariance_of(filtered: WienerFilter) -> Tensor:
    entries = filtered.mean.numel()
    basis = rotate(torch.eye(entries).double().reshape(-1, *filtered.mean.shape), filtered.factors, filtered.mix)
    basis = basis.reshape(entries, entries)
    return basis @ torch.diag(filtered.variance.flatten()) @ basis.mT


def silent(net: MLP | NCSNpp, x: Tensor) -> MLP | NCSNpp:
    net = net.double()
    assert net.wiener is not None
    net.wiener.fit(x)
    return net


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize(
    ("rule", "target"), [(EDM(sigma_data=0.7), "edm"), (Epsilon(), "epsilon"), (Data(sigma_data=2.0), "data")]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_silent_network_is_the_exact_denoiser_of_gaussian_data(
    sde: SDE, rule: EDM | Epsilon | Data, target: str, shape: tuple[int, ...]
) -> None:
    x = correlated(shape)
    net = silent(MLP(shape=shape, width=8, depth=1, wiener=target, data_scale=rule.sigma_data), x)
    if target != "edm":
        torch.nn.init.zeros_(net.output.weight)
    exact = GaussianDenoiser(sde, net.wiener.mean.reshape(shape), cov=covariance_of(net.wiener))
    for level in (1e-3, 0.1, 0.5, 1.0):
        t = torch.tensor(level, dtype=torch.float64)
        noisy = sde.perturb(x[:7], t, torch.randn_like(x[:7]))
        torch.testing.assert_close(
            NetworkDenoiser(net, sde, rule).eps(noisy, t), exact.eps(noisy, t), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_network_sees_unit_variance_in_every_direction_at_every_level(shape: tuple[int, ...]) -> None:
    x = correlated(shape, 4000)
    filtered = WienerFilter(shape, data_scale=0.5).double()
    filtered.fit(x)
    seen = []
    for s in (0.01, 1.0, 30.0):
        noisy = (x + s * torch.randn_like(x)) / (s**2 + 0.5**2) ** 0.5
        level = torch.full((len(x),), s, dtype=torch.float64).log() / 4
        filtered(noisy, level, lambda z: seen.append(z.flatten(1)) or torch.zeros_like(z))  # type: ignore[func-returns-value]
    for z in seen:
        torch.testing.assert_close(z.T @ z / len(z), torch.eye(z.shape[1]).double(), rtol=0, atol=0.15)


def test_without_data_it_changes_nothing() -> None:
    torch.manual_seed(0)
    for shape in ((5,), (2, 40, 40)):  # any directions, and products of one per axis
        plain = MLP(shape=shape, width=8, depth=1)
        torch.nn.init.normal_(plain.output.weight)
        filtered = MLP(shape=shape, width=8, depth=1, wiener="edm", data_scale=0.5)
        filtered.load_state_dict(plain.state_dict(), strict=False)
        x = torch.randn(3, *shape)
        torch.testing.assert_close(filtered(x, 0.3), plain(x, 0.3), rtol=1e-5, atol=1e-5)


def test_outputs_beyond_the_data_pass() -> None:
    net = NCSNpp(
        channels=2, out_channels=4, image_size=[8], width=8, channel_mults=[1], num_res_blocks=1,
        attention_resolutions=[], init_scale=1.0, embedding="fourier", wiener="edm",
    )  # fmt: skip
    x = correlated((2, 8)).float()
    net.wiener.fit(x)
    seen: list[Tensor] = []
    net.output.register_forward_hook(lambda module, given, out: seen.append(out))
    out = net(x[:3], 0.3)
    assert out.shape == (3, 4, 8)
    torch.testing.assert_close(out[:, 2:], seen[0][:, 2:])
    assert (out[:, :2] - seen[0][:, :2]).abs().max() > 0.1


def test_directions_are_orthogonal_and_diagonalise_what_has_structure() -> None:
    """Kronecker products of a covariance per axis, of events that are too large for one matrix."""
    generator, shape = torch.Generator().manual_seed(0), (2, 24, 25)
    mixing = [0.4 * torch.randn(n, n, generator=generator).double() / n**0.5 + torch.eye(n).double() for n in shape]
    x = torch.einsum("nabc,ai,bj,ck->nijk", torch.randn(900, *shape, generator=generator).double(), *mixing)
    found = karhunen_loeve(x + 3)
    assert found.variance.shape == shape and (found.mean - 3).abs().max() < 1.0
    y = rotate(x, found.factors, found.mix)
    torch.testing.assert_close(rotate_back(y, found.factors, found.mix), x)
    torch.testing.assert_close(y.square().sum(), x.square().sum())
    variances = [torch.linalg.eigvalsh(m.mT @ m) for m in mixing]
    exact = torch.einsum("a,b,c->abc", *variances)
    assert (found.variance.log().mean() - exact.log().mean()).abs() < 0.02


@pytest.mark.parametrize("structured", [True, False])
def test_a_covariance_of_few_examples_is_as_free_as_they_allow(structured: bool) -> None:
    """Nearly the truth with structure; without, better than the sample covariance and better than structure alone."""
    generator, shape, count = torch.Generator().manual_seed(1), (3, 20), 150
    entries = 60
    if structured:
        distance = (torch.arange(20)[:, None] - torch.arange(20)).abs().double()
        truth = torch.kron(torch.eye(3).double() + 0.5, torch.exp(-distance / 5))
    else:
        mixing = torch.randn(entries, entries, generator=generator).double()
        truth = mixing @ mixing.mT / entries + 0.1 * torch.eye(entries).double()
    x = torch.randn(count, entries, generator=generator).double() @ torch.linalg.cholesky(truth).mT
    found = karhunen_loeve(x.reshape(count, *shape))
    estimate = found.mix @ torch.diag(found.variance) @ found.mix.mT

    def excess(covariance: Tensor) -> float:  # KL per entry, of two centred Gaussians
        ratio = torch.linalg.solve(covariance, truth)
        return float((ratio.trace() - entries - torch.logdet(ratio)) / (2 * entries))

    sample = excess(x.mT @ x / count)
    assert excess(estimate) < (0.1 if structured else 0.9) * sample
    assert excess(estimate) < (0.02 if structured else excess(torch.diag(truth.diagonal())))


def test_data_on_a_plane_have_a_floor_and_one_example_no_direction() -> None:
    plane = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) @ torch.ones(2, 30)
    for x in (plane, plane[:1], torch.zeros(4, 3)):
        found = karhunen_loeve(x)
        assert all(bool(part.isfinite().all()) for part in (found.mean, found.mix, found.variance))
        assert found.variance.min() > 0


def test_errors_name_the_option() -> None:
    with pytest.raises(ValueError, match="needs wiener None, none, edm, epsilon or data, got 'v'"):
        MLP(wiener="v")


def test_one_probe_along_the_directions_is_exact_for_gaussian_data() -> None:
    """Signs along the axes have an error of many nats there; a denoiser with a condition knows the directions too."""
    shape, rough = (2, 3), {"rtol": 3e-3, "atol": 3e-3, "seeds": 0}
    x = correlated(shape).float()
    net = MLP(shape=shape, width=8, depth=1, num_classes=2, wiener="edm")
    net.wiener.fit(x)
    model = NetworkDenoiser(net, VPSDE(), EDM(sigma_data=1.0)).given(label=torch.tensor(1))
    exact = log_prob(model, x[:2], divergence="exact", **rough)
    two = log_prob(model, x[:2], probes=2, **rough)
    assert (two.log_prob - exact.log_prob).abs().max() < 0.02 and two.std_error.max() < 1e-3
    assert log_prob(model, x[:2], probes=2, probe="gaussian", **rough).std_error.max() > 0.3

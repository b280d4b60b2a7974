"""Networks of score_sde: golden outputs of the original, and checkpoints in every form."""

from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rounding import assert_rounded, dtype_of
from torch import Tensor, nn

from scoresde.denoiser import NetworkDenoiser
from scoresde.interop import ScoreSDEParameterization, load_score_sde
from scoresde.sde import VESDE, VPSDE, SubVPSDE

torch.set_num_threads(1)
DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[2] / "shared" / "reference" / "score_sde" / "nets"
NETS: dict[str, Any] = json.loads((DATA / "score_sde_nets.json").read_text())


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(DATA / "score_sde_nets.npz") as arrays:
        return {key: torch.from_numpy(value) for key, value in arrays.items()}


def weights(name: str) -> dict[str, Tensor]:
    """The original's weights: N(0, 1/fan_in), gains 1 + 0.1 N, biases 0.1 N, frequencies 16 N."""
    rng = np.random.RandomState(NETS[name]["seed"])
    state = {}
    for key, shape in NETS[name]["parameters"]:
        z = rng.standard_normal(tuple(shape))
        if key == "all_modules.0.W":
            z = 16 * z
        elif len(shape) > 1:
            z = z / (shape[0] if key.endswith(".W") else np.prod(shape[1:])) ** 0.5
        else:
            z = 1 + 0.1 * z if key.endswith("weight") else 0.1 * z
        state[key] = torch.from_numpy(z).float()
    model = NETS[name]["config"]["model"]
    log_ends = np.log(model["sigma_max"]), np.log(model["sigma_min"])
    state["sigmas"] = torch.from_numpy(np.exp(np.linspace(*log_ends, model["num_scales"])))
    return state


def load(name: str) -> NetworkDenoiser:
    return load_score_sde(weights(name), NETS[name]["config"])


def value_and_vjp(net: nn.Module, x: Tensor, c: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """F and vᵀ ∂F/∂x, in the precision of the network."""
    dtype = dtype_of(net)
    x = x.to(dtype, copy=True).requires_grad_()
    y = net(x, c)
    assert y.dtype == dtype
    return y, torch.autograd.grad((y * v.to(dtype)).sum(), x, retain_graph=True)[0]


@pytest.mark.parametrize("name", NETS)
def test_network_and_its_derivatives_equal_the_original(golden: dict[str, Tensor], name: str) -> None:
    net, inputs = load(name).net, (golden["x"], golden[f"{name}.c"], golden["v"])
    assert_rounded(
        lambda net: value_and_vjp(net, *inputs), net, (golden[f"{name}.y"].double(), golden[f"{name}.vjp"].double())
    )
    x, c, v = inputs
    trainable = [p for p in net.parameters() if p.requires_grad]
    gradients = torch.autograd.grad((net(x, c) * v).sum(), trainable, allow_unused=True)
    norms = torch.stack([x.new_zeros(()) if g is None else g.norm() for g in gradients])
    expected = golden[f"{name}.grad_norms"]
    torch.testing.assert_close(norms, expected, rtol=1e-4, atol=1e-5 * expected.max().item())


@pytest.mark.parametrize("key", ["embed.fourier.W", "middle.0.attention.NIN_3.W"])
def test_rounding_excuses_no_error(golden: dict[str, Tensor], key: str) -> None:
    """2π taken as 6.283, or a factor of 1.003 on what attention adds."""
    net, inputs = load("ve_cont").net, (golden["x"], golden["ve_cont.c"], golden["v"])
    net.state_dict()[key].mul_(6.283 / (2 * math.pi) if "fourier" in key else 1.003)
    with pytest.raises(AssertionError):
        assert_rounded(
            lambda net: value_and_vjp(net, *inputs), net, (golden["ve_cont.y"].double(), golden["ve_cont.vjp"].double())
        )


@pytest.mark.parametrize("name", NETS)
def test_score_and_eps_equal_the_original(golden: dict[str, Tensor], name: str) -> None:
    trained = load(name)

    def outputs(net: nn.Module) -> tuple[Tensor, ...]:
        x, t = (golden[key].to(dtype_of(net)) for key in ("x", "t"))
        denoiser = NetworkDenoiser(net, trained.sde, trained.parameterization)
        return denoiser.score(x, t), denoiser.eps(x, t), denoiser(x, t)

    x, t, score = (golden[key].double() for key in ("x", "t", f"{name}.score"))
    alpha, sigma = (level[:, None, None, None] for level in (trained.sde.alpha(t), trained.sde.sigma(t)))
    assert_rounded(outputs, trained.net, (score, -score * sigma, (x + sigma.square() * score) / alpha))


@pytest.mark.skipif(
    not SHARED.is_dir(),
    reason="needs the reference's weights (7 MB a file), kept outside this repository",
)
@pytest.mark.parametrize("name", ["ncsnpp_ve_cont", "ddpm_vp_cont", "x_ncsnpp_vp_cont", "x_ncsnpp_ve_discrete"])
def test_larger_networks_with_stored_weights_equal_the_original(name: str) -> None:
    from safetensors.torch import load_file

    meta = json.loads((SHARED / "meta.json").read_text())[name]
    stored = load_file(SHARED / f"{name}.safetensors")
    training = {
        "sde": "vesde" if "/ve/" in meta["base_config"] else "vpsde",
        "continuous": "continuous" in meta["base_config"],
    }
    config = {"training": training, "model": meta["model"], "data": meta["data"]}
    state = {key.removeprefix("sd."): value for key, value in stored.items() if key.startswith("sd.")}
    net = load_score_sde(state, config).net

    inputs = (stored["io.x"], stored["io.cond"], stored["io.v"])
    expected = (stored["io.y"].double(), stored["io.vjp_x"].double())
    assert_rounded(lambda net: value_and_vjp(net, *inputs), net, expected)


def test_labels_and_score_factors_follow_the_table_of_the_class() -> None:
    t = torch.tensor([1e-5, 0.1, 0.5, 0.999, 1.0], dtype=torch.float64)
    for sde in (VPSDE(), SubVPSDE()):
        p = ScoreSDEParameterization(sde=sde)
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        torch.testing.assert_close(p.c_noise(alpha, sigma), 999 * t, rtol=1e-9, atol=1e-9)
        skip, out = p.skip_out(alpha, sigma)
        torch.testing.assert_close(skip, 1 / alpha)
        torch.testing.assert_close(out, -sigma / alpha)

    ve = VESDE()
    alpha, sigma = ve.alpha(t), ve.sigma(t)
    torch.testing.assert_close(ScoreSDEParameterization(sde=ve).c_noise(alpha, sigma), 0.01 * 5000**t)
    discrete = ScoreSDEParameterization(sde=ve, continuous=False).c_noise(alpha, sigma)
    assert discrete.tolist() == [999, 899, 500, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inside", [0.0, 0.4])
def test_discrete_vp_uses_the_table_of_its_floored_label(inside: float, dtype: torch.dtype) -> None:
    """Also exactly at an index, where the rounding of t or of the way through (α, σ) must not lose one."""
    sde = VPSDE()
    p = ScoreSDEParameterization(sde=sde, continuous=False)
    label = torch.arange(999, dtype=torch.float64) + (inside or 1.0)
    t = (label / 999).to(dtype).double()
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    torch.testing.assert_close(p.c_noise(alpha, sigma), 999 * t, rtol=1e-9, atol=1e-9)

    abar = torch.cumprod(1 - torch.linspace(0.1 / 1000, 20 / 1000, 1000, dtype=torch.float64), 0)
    expected = -sigma.square() / alpha / torch.sqrt(1 - abar[label.floor().long()])
    torch.testing.assert_close(p.skip_out(alpha, sigma)[1], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["ve_cont", "ddpmpp_vp", "ddpmpp_subvp", "ve_discrete"])
def test_another_clock_and_scale_give_the_same_denoiser(golden: dict[str, Tensor], name: str) -> None:
    """E[x0 | x_t] depends on the signal-to-noise ratio and on x_t / α_t only."""
    trained = load(name)
    x, t = golden["x"].double(), golden["t"].double()
    net = trained.net.double()
    for sde in (VPSDE(beta_max=15.0), VESDE(sigma_max=80.0)):
        other = NetworkDenoiser(net, sde, trained.parameterization)
        s = sde.time(trained.sde.logsnr(t))
        ratio = (sde.alpha(s) / trained.sde.alpha(t))[:, None, None, None]
        torch.testing.assert_close(other(ratio * x, s), trained(x, t), atol=1e-6, rtol=1e-6)


def published(name: str) -> dict[str, Any]:
    """A checkpoint as the original writes it: averaged weights in a list, and a numpy learning rate."""
    state = weights(name)
    frozen = {"sigmas"} if "all_modules.0.W" not in state else {"sigmas", "all_modules.0.W"}
    shadow = [value.clone() for key, value in state.items() if key not in frozen]
    raw = {f"module.{key}": value if key in frozen else torch.zeros_like(value) for key, value in state.items()}
    return {
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(2e-4), "params": [0]}]},
        "model": raw,
        "ema": {"decay": 0.999, "num_updates": 10, "shadow_params": shadow},
        "step": 10,
    }


@pytest.mark.parametrize("name", ["ve_cont", "ddpmpp_vp"])
def test_published_checkpoint_gives_its_averaged_weights(tmp_path: Path, name: str) -> None:
    path, config = tmp_path / "checkpoint_8.pth", NETS[name]["config"]
    torch.save(published(name), path)
    expected = load(name).state_dict()
    for source in (path, str(path), published(name)):
        loaded = load_score_sde(source, config)
        assert not loaded.training
        torch.testing.assert_close(dict(loaded.state_dict()), dict(expected), atol=0, rtol=1e-12)
    raw = load_score_sde(path, config, ema=False).state_dict()
    assert raw["net.embed.dense.2.weight"].abs().max() == 0


def test_plain_state_dicts_and_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    config, state = NETS["ve_cont"]["config"], weights("ve_cont")
    prefixed = {f"module.{key}": value for key, value in state.items()}
    torch.save(prefixed, tmp_path / "net.pt")
    save_file(state, tmp_path / "net.safetensors")
    expected = load("ve_cont").state_dict()
    for source in (prefixed, tmp_path / "net.pt", tmp_path / "net.safetensors"):
        torch.testing.assert_close(dict(load_score_sde(source, config).state_dict()), dict(expected), atol=0, rtol=0)


def test_every_form_of_config_is_understood() -> None:
    nested = NETS["ddpmpp_vp_discrete"]["config"]
    flat = {f"{section}.{key}": value for section, fields in nested.items() for key, value in fields.items()}
    objects = SimpleNamespace(**{section: SimpleNamespace(**fields) for section, fields in nested.items()})
    for config in (nested, flat, objects):
        denoiser = load_score_sde(weights("ddpmpp_vp_discrete"), config)
        assert isinstance(denoiser.parameterization, ScoreSDEParameterization)
        assert not denoiser.parameterization.continuous


def test_loading_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    load("ve_cont")
    assert torch.equal(torch.random.get_rng_state(), before)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo executed > trapped",)


def test_a_checkpoint_that_would_execute_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": weights("ve_cont"), "extra": Trap()}, "trap.pth")
    Path("raw.pth").write_bytes(pickle.dumps(Trap()))
    for name in ("trap.pth", "raw.pth"):
        with pytest.raises(ValueError, match=rf"'{name}' was not loaded: .* could execute code"):
            load_score_sde(name, NETS["ve_cont"]["config"])
    assert not Path("trapped").exists()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path, config = tmp_path / "cut.pth", NETS["ve_cont"]["config"]
    torch.save(published("ve_cont"), path)
    whole = path.read_bytes()
    place = whole.index(weights("ve_cont")["all_modules.5.Conv_0.weight"].numpy().tobytes())
    flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    for content in (flipped, whole[: len(whole) // 2], b"", b"hello world", whole[:10], b"\x80\x02abc"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cut.pth' cannot be read as a PyTorch checkpoint"):
            load_score_sde(path, config)
    with pytest.raises(FileNotFoundError):
        load_score_sde(tmp_path / "missing.pth", config)
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 9)
    with pytest.raises(ValueError, match=r"cut.safetensors' cannot be read as safetensors"):
        load_score_sde(tmp_path / "cut.safetensors", config)


def change(config: dict[str, Any], section: str, **fields: Any) -> dict[str, Any]:
    return {**config, section: {**config[section], **fields}}


def test_weights_that_do_not_fit_say_how() -> None:
    state, config = weights("ve_cont"), NETS["ve_cont"]["config"]
    missing = {key: value for key, value in state.items() if key != "all_modules.2.bias"}
    with pytest.raises(ValueError, match=r"it misses all_modules.2.bias; use the config of this checkpoint"):
        load_score_sde(missing, config)
    with pytest.raises(ValueError, match="has an unknown extra"):
        load_score_sde({**state, "extra": torch.zeros(1)}, config)
    with pytest.raises(ValueError, match=r"has all_modules.0.W of shape \(8,\) for \(16,\).* more differences"):
        load_score_sde(state, change(config, "model", nf=16))
    with pytest.raises(ValueError, match=r"averaged parameters and the network of the config has"):
        load_score_sde(published("ve_cont"), change(config, "model", num_res_blocks=2))


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("training", {"sde": "cosine"}, "training.sde to be vpsde, subvpsde or vesde, got 'cosine'"),
        ("model", {"name": "ncsnv2_64"}, "reads ncsnpp and ddpm networks, got model.name='ncsnv2_64'"),
        ("model", {"nonlinearity": "elu"}, "reads swish networks, got model.nonlinearity='elu'"),
        ("model", {"resblock_type": "resnet"}, "NCSNpp needs block biggan or ddpm, got 'resnet'"),
        ("model", {"name": "ddpm", "conditional": False}, "reads conditional ddpm networks"),
    ],
)
def test_a_config_of_something_else_is_refused(section: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_score_sde(weights("ve_cont"), change(NETS["ve_cont"]["config"], section, **fields))


def test_a_missing_field_is_named() -> None:
    config = NETS["ve_cont"]["config"]
    with pytest.raises(ValueError, match=r"needs training.sde in the config"):
        load_score_sde(weights("ve_cont"), {key: config[key] for key in ("model", "data")})

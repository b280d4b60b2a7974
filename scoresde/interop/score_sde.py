"""Checkpoints and configurations of yang-song/score_sde_pytorch (arXiv:2011.13456)."""

from __future__ import annotations

import codecs
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from scoresde.denoiser import NetworkDenoiser
from scoresde.files import check_regular, open_regular
from scoresde.interop.score_sde_keys import score_sde_keys
from scoresde.interop.wrapped import weights_by_name
from scoresde.models import DDPMUNet, NCSNpp
from scoresde.parameterization import Parameterization
from scoresde.plain_pickle import NUMPY, check_pickle, read_tensors
from scoresde.sde import SDE, VESDE, VPSDE, SubVPSDE


@dataclass(frozen=True, kw_only=True)
class ScoreSDEParameterization(Parameterization):
    """What a network of score_sde predicts, and how its noise label follows from (α, σ).

                                label                        score
        VP, sub-VP continuous   999 t                        −F / σ_t
        VP discrete             (N − 1) t                    −F / √(1 − ᾱ_k),   k = ⌊label⌋
        VE continuous           σ_t                          F
        VE discrete             round((1 − t)(N − 1))        F

        x̂0 = (x + σ² score) / α

    t is the time at which the training process `sde` has the signal-to-noise ratio of (α, σ). Under another
    process the state is first brought to the scale of the training process, so that the network sees what it
    was trained on.

    Args:
        sde: The process that the network was trained on: VP, sub-VP or VE.
        continuous: Whether it was trained at continuous times (sub-VP always was).
        num_scales: N, the number of noise levels of a discretely trained network.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    sde: SDE
    continuous: bool = True
    num_scales: int = 1000

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        t = self._time(alpha, sigma)
        train_alpha, train_sigma = self.sde.alpha(t), self.sde.sigma(t)
        return 1 / alpha, train_sigma.square() / train_alpha * self._score_scale(t)

    def c_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.sde.alpha(self._time(alpha, sigma)) / alpha

    def c_noise(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        t = self._time(alpha, sigma)
        if isinstance(self.sde, VESDE):
            return self.sde.sigma(t) if self.continuous else ((1 - t) * (self.num_scales - 1)).round()
        return self._time_label(t)

    def _time(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.sde.time(2 * (alpha.log() - sigma.log()))

    def _time_label(self, t: Tensor) -> Tensor:
        return t * (999 if self._is_continuous else self.num_scales - 1)

    def _score_scale(self, t: Tensor) -> Tensor:
        """score / F."""
        if isinstance(self.sde, VESDE):
            return torch.ones_like(t)
        if self._is_continuous or not isinstance(self.sde, VPSDE):
            return -1 / self.sde.sigma(t)
        N = self.num_scales
        betas = torch.linspace(self.sde.beta_min / N, self.sde.beta_max / N, N, dtype=torch.float64)
        table = torch.sqrt(-torch.expm1(torch.log1p(-betas).cumsum(0))).to(t.device)
        # the label in float32, as the network gets it: a time k / (N − 1) then has the index k, not k − 1
        index = self._time_label(t).float().floor().long().clamp(0, N - 1)
        return (-1 / table[index]).to(t.dtype)

    @property
    def _is_continuous(self) -> bool:
        return self.continuous or isinstance(self.sde, SubVPSDE)


def load_score_sde(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any], config: Any, *, ema: bool = True
) -> NetworkDenoiser:
    """A network trained with score_sde as a denoiser, whose `eps` and `score` are the original's.

    Args:
        path_or_state_dict: A published checkpoint (.pth: model, EMA, optimizer and step), a plain state dict
            (.pth, .pt or .safetensors), or either in memory, under state_dict or the like too. Keys may begin with
            what DataParallel and torch.compile put there, and a file may hold the average alone.
        config: The original's configuration, as nested mappings, one mapping with dotted keys, or an object
            with attributes. Read are training.sde, training.continuous, model.* and data.*.
        ema: Take the averaged weights of a published checkpoint.
    Returns:
        The denoiser, in eval mode, on the CPU.
    Raises:
        ValueError: If the configuration is not one of an NCSN++, DDPM++ or DDPM network, the file is not a
            checkpoint or would execute code, or its weights do not fit the configuration.
    """
    sections = {name: _section(config, name) for name in ("training", "model", "data")}
    sde = _build_sde(sections)
    with torch.random.fork_rng(devices=[]):
        net = _build_network(sections)
    if isinstance(path_or_state_dict, Mapping):
        source, content = "the given mapping", path_or_state_dict
    else:
        source, content = f"'{os.fspath(path_or_state_dict)}'", _read(Path(path_or_state_dict))
    _load_weights(net, weights_by_name(content, net, ema, source), source)
    parameterization = ScoreSDEParameterization(
        sde=sde,
        continuous=bool(_need(sections, "training.continuous")),
        num_scales=int(sections["model"].get("num_scales", 1000)),
    )
    return NetworkDenoiser(net, sde, parameterization).eval()


def _section(config: Any, name: str) -> dict[str, Any]:
    """One section of a configuration in any of the accepted forms."""
    if not hasattr(config, "items"):
        return _as_dict(getattr(config, name, None))
    section = _as_dict(config[name]) if name in config else {}
    dotted = {k.removeprefix(f"{name}."): v for k, v in config.items() if str(k).startswith(f"{name}.")}
    return section | dotted


def _as_dict(section: Any) -> dict[str, Any]:
    if section is None:
        return {}
    return dict(section.items() if hasattr(section, "items") else vars(section))


def _need(sections: Mapping[str, Mapping[str, Any]], key: str) -> Any:
    section, name = key.split(".")
    if name not in sections[section]:
        raise ValueError(f"load_score_sde needs {key} in the config, which has none; take it from the training config.")
    return sections[section][name]


def _build_sde(sections: Mapping[str, Mapping[str, Any]]) -> SDE:
    model = sections["model"]
    name = str(_need(sections, "training.sde")).lower()
    if name == "vesde":
        return VESDE(sigma_min=float(model.get("sigma_min", 0.01)), sigma_max=float(model.get("sigma_max", 50.0)))
    if name not in ("vpsde", "subvpsde"):
        raise ValueError(f"load_score_sde needs training.sde to be vpsde, subvpsde or vesde, got {name!r}.")
    cls = VPSDE if name == "vpsde" else SubVPSDE
    return cls(beta_min=float(model.get("beta_min", 0.1)), beta_max=float(model.get("beta_max", 20.0)))


def _build_network(sections: Mapping[str, Mapping[str, Any]]) -> NCSNpp:
    model, data, need = sections["model"], sections["data"], partial(_need, sections)

    def word(name: str, default: str) -> str:
        return str(model.get(name, default)).lower()

    name = str(need("model.name")).lower()
    if name not in ("ncsnpp", "ddpm"):
        raise ValueError(f"load_score_sde reads ncsnpp and ddpm networks, got model.name={name!r}.")
    if word("nonlinearity", "swish") != "swish":
        raise ValueError(f"load_score_sde reads swish networks, got model.nonlinearity={model['nonlinearity']!r}.")
    options: dict[str, Any] = {
        "channels": int(data.get("num_channels", 3)), "image_size": int(need("data.image_size")),
        "width": int(need("model.nf")), "channel_mults": tuple(need("model.ch_mult")),
        "num_res_blocks": int(need("model.num_res_blocks")),
        "attention_resolutions": tuple(need("model.attn_resolutions")), "dropout": float(model.get("dropout", 0.1)),
        "resample_with_conv": bool(model.get("resamp_with_conv", True)),
        "scale_by_sigma": bool(model.get("scale_by_sigma", False)), "centered": bool(need("data.centered")),
        "num_scales": int(model.get("num_scales", 1000)),
        "sigma_min": float(model.get("sigma_min", 0.01)), "sigma_max": float(model.get("sigma_max", 50.0)),
    }  # fmt: skip
    conditional = bool(model.get("conditional", True))
    if name == "ddpm":
        if not conditional:
            raise ValueError("load_score_sde reads conditional ddpm networks, got model.conditional=False.")
        return DDPMUNet(**options)
    embedding = str(need("model.embedding_type")).lower()
    options |= {
        "block": word("resblock_type", "biggan"), "time_conditional": conditional,
        "fir": bool(need("model.fir")), "fir_kernel": tuple(model.get("fir_kernel", (1, 3, 3, 1))),
        "progressive_output": word("progressive", "none"), "progressive_input": word("progressive_input", "none"),
        "progressive_combine": word("progressive_combine", "sum"),
        "skip_rescale": bool(model.get("skip_rescale", True)), "init_scale": float(model.get("init_scale", 0.0)),
        "embedding": "log_fourier" if embedding == "fourier" else embedding,
        "fourier_scale": float(model.get("fourier_scale", 16.0)),
    }  # fmt: skip
    return NCSNpp(**options)


def _read(path: Path) -> Mapping[str, Any]:
    """The content of a checkpoint file, read without executing anything in it."""
    check_regular(path)
    if path.suffix == ".safetensors":
        import safetensors
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"'{path}' cannot be read as safetensors ({error}).") from None
    try:
        with open_regular(path) as file:
            # the optimizer of a published checkpoint keeps its learning rate as a numpy number
            content = read_tensors(file, _KNOWN) if zipfile.is_zipfile(file) else _read_legacy(file)
    except pickle.UnpicklingError:
        raise ValueError(
            f"'{path}' was not loaded: it holds objects other than tensors and numbers, which could execute "
            f"code, or it is no PyTorch checkpoint; save its state dict alone."
        ) from None
    except _DAMAGE:
        raise ValueError(
            f"'{path}' cannot be read as a PyTorch checkpoint: it is damaged, or of another kind."
        ) from None
    if not isinstance(content, Mapping):
        raise TypeError(f"'{path}' holds a {type(content).__name__}, but a checkpoint maps names to tensors.")
    return content


# what a reader of damaged bytes may meet
_DAMAGE = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError, EOFError,
    struct.error, zipfile.BadZipFile,
)  # fmt: skip
_KNOWN = NUMPY | {("torch._utils", "_rebuild_parameter"): lambda tensor, *unused: tensor}
_scalar = np.float64(0).__reduce__()[0]
_NUMPY_NUMBERS: list[Any] = [
    (_scalar, "numpy.core.multiarray.scalar"), (_scalar, "numpy._core.multiarray.scalar"), np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32")), codecs.encode,
]  # fmt: skip


def _read_legacy(file: BinaryIO) -> Any:
    """The content of a file of torch before 1.6: five pickles, then the storages."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    for _ in range(5):
        if file.tell() < size:
            check_pickle(file, size)
    file.seek(0)
    with torch.serialization.safe_globals(_NUMPY_NUMBERS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


def _load_weights(net: NCSNpp, weights: Mapping[str, Tensor], source: str) -> None:
    published = score_sde_keys(net)
    expected = {published[name]: value for name, value in net.state_dict().items()}
    differing = [key for key in expected if key in weights and weights[key].shape != expected[key].shape]
    problems = [f"misses {key}" for key in expected if key not in weights]
    problems += [f"has an unknown {key}" for key in weights if key not in expected]
    shapes = [(key, tuple(weights[key].shape), tuple(expected[key].shape)) for key in differing]
    problems += [f"has {key} of shape {theirs} for {ours}" for key, theirs, ours in shapes]
    if problems:
        more = f" and {len(problems) - 3} more differences" if len(problems) > 3 else ""
        raise ValueError(
            f"{source} does not fit the network of the config: it {', '.join(problems[:3])}{more}; "
            f"use the config of this checkpoint."
        )
    net.load_state_dict({ours: weights[key] for ours, key in published.items()})

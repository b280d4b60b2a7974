"""The covariance of a trained run: Analytic-DPM's table, made once and kept beside it, and trained variance heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from scoresde.commands.batches import Batches
from scoresde.commands.build import ANY_INTERFACE, ConfigError, build, fill
from scoresde.commands.companion import (
    companion_config,
    data_of,
    labelled,
    open_companion,
    options_of,
    train_companion,
)
from scoresde.commands.device import pick_device
from scoresde.commands.load import TrainedModel, load_run
from scoresde.covariance import (
    AnalyticVariance,
    CovarianceDenoiser,
    HessianDiagonal,
    LearnedRange,
    SecondMoment,
    VarianceHead,
    second_moment,
)
from scoresde.covariance.moments import noise_levels
from scoresde.data import Dataset, Quantized
from scoresde.denoiser import NetworkDenoiser
from scoresde.losses import DenoisingLoss
from scoresde.noise import stream_generator
from scoresde.training import load_checkpoint, load_weights, save_checkpoint

VARIANCE_FILE = "variance.pt"
VARIANCE_HEAD = "variance_head"  # task of a head's run
HEADS = ("npr", "sn")
KINDS = ("analytic", "corrected", "hessian", *HEADS)


def with_variance(
    trained: TrainedModel,
    kind: str,
    *,
    samples: int = 500,
    levels: int | None = None,
    probes: int | None = 1,
    isotropic: bool = False,
    seed: int = 0,
    extensions: Sequence[str] = (),
) -> CovarianceDenoiser:
    """The denoiser of a run with a covariance, for solvers with `variance=optimal`.

    Args:
        trained: The run.
        kind: "analytic" (one variance per noise level, from a table that is made at the first use), "corrected" (the
            same from the error of x̂0), "hessian" (probing, one backward pass per probe and step), "npr" or "sn" (a
            head trained by `train_variance_head`).
        samples, levels: Of the table, see `second_moment`.
        probes, isotropic: Of the probing, see `HessianDiagonal`.
        seed: Of the table's noise or the probes.
        extensions: The user's own modules that the run's classes may come from.
    """
    denoiser, limits = _denoiser(trained), data_range(trained)
    if kind in ("analytic", "corrected"):
        table = moments_of(trained, samples=samples, levels=levels, seed=seed, extensions=extensions)
        return AnalyticVariance(denoiser, table, limits, corrected=kind == "corrected").to(_device(denoiser))
    if kind == "hessian":
        return HessianDiagonal(denoiser, probes, limits, isotropic=isotropic, seed=seed)
    if kind in HEADS:
        return load_variance_head(trained, kind, extensions=extensions)
    raise ConfigError(f"variance needs to be one of {', '.join(KINDS)}, got {kind!r}.")


def moments_of(
    trained: TrainedModel,
    *,
    samples: int = 500,
    levels: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    extensions: Sequence[str] = (),
) -> SecondMoment:
    """E‖ε̂‖²/d of a run over its training data: from variance.pt in its folder, or computed and written there.

    A file made from other weights, with another seed or levels, or from fewer samples is made again.
    """
    for name, number, least in (("samples", samples, 3), ("levels", levels, 2)):
        if (number is not None or name == "samples") and (not isinstance(number, int) or number < least):
            raise ConfigError(
                f"a table of the variance needs {name} to be a whole number from {least}, got {number!r}."
            )
    path = trained.run.path / VARIANCE_FILE
    wanted = {"step": trained.step, "seed": seed, "levels": levels or 0}
    if path.is_file():
        state = load_checkpoint(path)
        if all(state.get(key) == value for key, value in wanted.items()) and state["samples"] >= samples:
            return SecondMoment.from_state(state)
    denoiser, device = _denoiser(trained), _device(_denoiser(trained))
    print(f"estimating the variance of {trained.run.path} from {samples} examples, once: kept in {path}")
    data = data_of(trained, extensions)
    batch_size = min(batch_size, len(data.train))
    batches = Batches(data, batch_size, seed, labelled=labelled(trained), dequantize=trained.dequantize)
    count = -(-samples // batch_size)

    def examples() -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for step in range(count):
            x0, cond = batches(step)
            yield x0.to(device), {key: value.to(device) for key, value in cond.items()}

    generator = stream_generator(seed, "second moment", device=device)
    calls = count * len(noise_levels(denoiser.sde, levels))
    with tqdm(total=calls, desc="variance", unit="call", disable=None, leave=False) as bar:
        hook = denoiser.net.register_forward_hook(lambda *call: bar.update())
        try:
            table = second_moment(denoiser, examples(), levels=levels, samples=samples, generator=generator)
        finally:
            hook.remove()
    save_checkpoint(path, {**table.state(), **wanted})
    return table


def head_config(config: dict[str, Any]) -> dict[str, Any]:
    """What `train_variance_head` needs, from a configuration of `train.py`.

    Raises:
        ConfigError: If the configuration says something that the run has decided.
    """
    whole = companion_config(config, "variance head", "digits_npr")
    return {**whole, "kind": config["head"], "net": config.get("model")}


def train_variance_head(config: dict[str, Any]) -> dict[str, float]:
    """Train an SN or NPR head for a run, or go on with the one that has the same configuration.

    The head lives in <run>/variance_<kind> as a run of its own, of task "variance_head".

    Args:
        config: run (that of the denoiser), kind, net (a node, or None for the run's own architecture, narrower),
            loss, optimizer, trainer, logger, batch_size, seed, device, extensions.
    """
    extensions = [*config["extensions"], ANY_INTERFACE]
    if config["kind"] not in HEADS:
        raise ConfigError(f"a variance head needs head={' or head='.join(HEADS)}, got head={config['kind']}.")
    loss = build(config["loss"], "loss", extensions)
    if isinstance(loss, DenoisingLoss):
        raise ConfigError("a variance head needs loss=second_moment, got a DenoisingLoss, which trains denoisers.")
    device = pick_device(config["device"])
    trained = load_run(config["run"], device=device, extensions=config["extensions"])
    _denoiser(trained)
    data = data_of(trained, config["extensions"])
    net = paired_net(config["net"], data) if config["net"] else default_net(trained.config["model"])
    options = {
        "kind": config["kind"],
        "net": net,
        "sigma_data": float(trained.config["parameterization"].get("sigma_data") or 1.0),
        "step": trained.step,
    }
    torch.manual_seed(config["seed"])
    head = _head(trained, options, extensions).to(device)
    metrics = train_companion(
        trained, head, list(head.net.parameters()), loss, config,
        task=VARIANCE_HEAD, key="head", path=head_path(trained, config["kind"]), options=options,
    )  # fmt: skip
    sampling = f"solver=ddpm solver.variance=optimal variance={config['kind']}"
    print(f"done: python sample.py run={trained.run.path} {sampling}")
    return metrics


def load_variance_head(trained: TrainedModel, kind: str, *, extensions: Sequence[str] = ()) -> VarianceHead:
    """The head trained for a run, with averaged weights.

    Raises:
        ConfigError: If there is none, or if the denoiser has been trained further since.
    """
    path, command = head_path(trained, kind), f"experiment=digits_{kind}"
    run = open_companion(trained, path, "head", noun=f"{kind} head", command=command)
    head = _head(trained, options_of(run, "head"), extensions)
    load_weights(head, load_checkpoint(run.checkpoint), ema=True)
    return head.to(_device(head)).eval().requires_grad_(False)


def default_net(model: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a head's network: the denoiser's own, of half the width, for x and ε̂ together.

    Raises:
        ConfigError: If the architecture is none of scoresde's.
    """
    net = dict(model)
    if "channels" in net:
        net |= {"channels": 2 * net["channels"], "embedding": "fourier", "fourier_scale": 1.0, "scale_by_sigma": False}
    elif "shape" in net:
        first, *rest = net["shape"]
        net["shape"] = [2 * first, *rest]
    else:
        raise ConfigError(
            f"a variance head for {model['_target_']} needs its own network, for twice the channels: give model=..."
        )
    net |= {key: None for key in ("num_classes", "condition_dim") if key in net}
    return net | {"width": max(16, net["width"] // 2)}


def paired_net(net: dict[str, Any], data: Dataset) -> dict[str, Any]:
    """The configuration of a head's network as the user gave it, with what the data decide in place of nulls."""
    first, *rest = data.shape
    for key, value in (("channels", 2 * first), ("shape", [2 * first, *rest])):
        if key in net and net[key] is None:
            net = {**net, key: value}
    whole = {"model": net, "parameterization": {}, "loss": {}, "conditional": False, "task": VARIANCE_HEAD}
    return {**fill(whole, data)["model"], **({"condition_dim": None} if "condition_dim" in net else {})}


def head_path(trained: TrainedModel, kind: str) -> Path:
    return trained.run.path / f"variance_{kind}"


def data_range(trained: TrainedModel) -> tuple[float, float] | None:
    """The range of a run's data in the model's scaling: that of quantised data; None if it has no bounds."""
    return trained.codec.value_range if isinstance(trained.codec, Quantized) else None


def _head(trained: TrainedModel, options: dict[str, Any], extensions: Sequence[str]) -> VarianceHead:
    net = build(options["net"], "net", extensions)
    if not isinstance(net, nn.Module):
        raise ConfigError(f"net must be a torch.nn.Module, got {type(net).__name__}.")
    return VarianceHead(
        _denoiser(trained), net, kind=options["kind"], sigma_data=options["sigma_data"], data_range=data_range(trained)
    )


def _denoiser(trained: TrainedModel) -> NetworkDenoiser | LearnedRange:
    if not isinstance(trained.model, NetworkDenoiser | LearnedRange):
        raise ConfigError(f"{trained.run.path} is the run of a classifier: name the run of a denoiser.")
    return trained.model


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device

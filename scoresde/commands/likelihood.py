"""Likelihood of a run's test split: bits/dim of quantised data, nats of continuous data."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from tqdm import tqdm

from scoresde.build import ConfigError, build
from scoresde.data import Dataset, Quantized
from scoresde.likelihood import bits_per_dim, log_prob
from scoresde.loading import TrainedModel


def test_likelihood(
    trained: TrainedModel,
    options: dict[str, Any],
    seed: int,
    batch_size: int,
    device: torch.device,
    extensions: list[str],
) -> dict[str, Any]:
    """Mean and standard error over test examples of the probability-flow likelihood.

    Images are dequantised uniformly, once per example; the standard error over examples contains the scatter of
    that and of the trace estimate.
    """
    data = build(trained.config["data"], "data", extensions)
    if not isinstance(data, Dataset) or data.shape != trained.shape:
        raise ConfigError(f"the data of {trained.run.path} are no longer those that it was trained on.")
    wanted = options["num_examples"]
    if wanted is not None and (not isinstance(wanted, int) or wanted < 0):
        raise ConfigError(f"likelihood.num_examples needs a whole number of at least 0, or null, got {wanted!r}.")
    split = data.test
    if len(split) < 2:
        print("no likelihood: the data have no test split")
        return {}
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(split), generator=generator)[: wanted or len(split)]
    conditional = trained.config["model"].get("num_classes") is not None

    start, values, nfe = time.perf_counter(), [], 0
    bar = tqdm(total=len(rows), desc="likelihood", unit="example", disable=None, leave=False)
    for chunk in rows.split(batch_size):
        x = trained.codec.encode(split.x[chunk], generator=generator).to(device)
        cond = {"label": split.label[chunk].to(device)} if conditional and split.label is not None else {}
        if split.condition is not None:
            cond["condition"] = split.condition[chunk].to(device)
        result = log_prob(
            trained.model.given(**cond),  # type: ignore[operator]
            x,
            divergence=options["divergence"],
            probes=options["probes"],
            rtol=options["rtol"],
            atol=options["atol"],
            generator=torch.Generator(device=device).manual_seed(seed + int(chunk[0])),
        )
        values.append(result.log_prob.cpu().double())
        nfe = max(nfe, result.nfe)
        bar.update(len(chunk))
    bar.close()
    nats, seconds = torch.cat(values), time.perf_counter() - start
    given = " given their labels" if conditional else ""
    metrics: dict[str, Any] = {"likelihood_nfe": nfe, "likelihood_num_examples": len(nats)}
    metrics["likelihood_seconds"] = round(seconds, 2)
    if isinstance(trained.codec, Quantized):
        bits = bits_per_dim(nats, trained.shape, levels=trained.codec.levels, value_range=trained.codec.value_range)
        mean, error = _mean_and_error(bits)
        metrics |= {"bits_per_dim": mean, "bits_per_dim_std_error": error}
        text = f"bits/dim {mean:.4f} ± {error:.4f}"
    else:
        mean, error = _mean_and_error(nats - trained.codec.log_det)
        metrics |= {"log_prob_nats": mean, "log_prob_nats_std_error": error}
        text = f"log p(x) {mean:.4f} ± {error:.4f} nats in the data's own units"
    print(f"{text} (standard error) on {len(nats)} test examples{given}, {nfe} network calls each, in {seconds:.1f} s")
    return metrics


def _mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    return values.mean().item(), values.std().item() / math.sqrt(len(values))

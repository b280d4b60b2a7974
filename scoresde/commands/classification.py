"""`diagnostics=classification`: a generative model of classes as a classifier, by Bayes' rule."""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.checks import check_choice, check_numbers, check_whole
from scoresde.commands.build import ConfigError
from scoresde.commands.interfaces import Diagnostics
from scoresde.commands.load import TrainedModel
from scoresde.data import Split
from scoresde.diagnostics import Classification, classification
from scoresde.files import write_atomically
from scoresde.likelihood import class_posterior
from scoresde.noise import stream_generator, stream_seed
from scoresde.pictures import classification_picture
from scoresde.pictures.canvas import png
from scoresde.progress import Progress

WHOLE = ("num_examples >= 2 or null", "samples >= 2", "probes >= 1", "bins >= 1")


@dataclass(frozen=True, kw_only=True)
class ClassifierDiagnostics(Diagnostics):
    """A model of classes as a classifier, by Bayes' rule: writes classification.json, .npz and .png.

        p(y | x) ∝ p(y) p(x | y)      on test examples, see `class_posterior`

    Args:
        by: "elbo": the bound at common times and noises, quick. "ode": the density of the probability flow.
        num_examples: Test examples; None: all.
        samples: Draws of (time, noise) of each example, for "elbo".
        probes, tolerance: Of "ode".
        prior: p(y): "uniform", or "counts" of the training examples.
        bins: Of the confidence.
    """

    by: str = "elbo"
    num_examples: int | None = 100
    samples: int = 32
    probes: int = 1
    tolerance: float = 1e-3
    prior: str = "uniform"
    bins: int = 10

    def __post_init__(self) -> None:
        check_choice("diagnostics", "by", self.by, ("elbo", "ode"))
        check_choice("diagnostics", "prior", self.prior, ("uniform", "counts"))
        check_whole("diagnostics", *WHOLE, **vars(self))
        check_numbers("diagnostics", "0 < tolerance < 1", tolerance=self.tolerance)

    def __call__(self, trained: TrainedModel, *, seed: int, batch_size: int, out: Path) -> dict[str, Any]:
        """See `Diagnostics`; the entry is "classification"."""
        start, classes = time.perf_counter(), trained.seen_classes
        if classes is None or len(classes) < 2:
            raise ConfigError(
                f"diagnostics=classification needs a model of two classes or more, and {trained.run.path} was trained "
                f"without: train one with conditional=true."
            )
        if trained.condition_dim is not None or trained.takes_gaps:
            raise ConfigError("diagnostics=classification is of models of classes alone, and this one has a condition.")
        data = trained.data()
        split, name = (data.test, "test") if len(data.test) > 1 else (data.train, "training")
        rows = torch.randperm(len(split), generator=stream_generator(seed, "order"))[: self.num_examples]
        rows = rows[torch.isin(_labels(split)[rows], torch.tensor(classes))]
        x = trained.codec.encode(
            split.x[rows], generator=stream_generator(seed, "dequantization"), dequantize=trained.dequantize
        )
        log_prob, std_error, nfe = self._posterior(trained, x, classes, seed, batch_size)
        label = torch.searchsorted(torch.tensor(classes), _labels(split)[rows])
        found = classification(log_prob, label, bins=self.bins)
        names = [str(k) if trained.names.classes is None else trained.names.classes[k] for k in classes]
        seconds = round(time.perf_counter() - start, 1)
        arrays = {"index": rows, "label": _labels(split)[rows], "log_prob": log_prob, "std_error": std_error}
        _write(out, found, names, arrays, f"{trained.run.path}, step {trained.step}: {_words(found)}")
        print(f"classification by {self.by} of {len(rows)} {name} examples: {_words(found)}")
        print(f"      {_confused(found.confusion, names)}; {nfe:,.0f} rows of network calls each")
        print(f"wrote {out / 'classification.png'}, .json and .npz in {seconds:.0f} s")
        return {
            "classification": {
                "by": self.by, "examples": len(rows), "accuracy": found.accuracy,
                "accuracy_std_error": found.accuracy_std_error, "nats": found.nats, "ece": found.ece,
                "seconds": seconds,
            }
        }  # fmt: skip

    def _posterior(
        self, trained: TrainedModel, x: Tensor, classes: list[int], seed: int, batch_size: int
    ) -> tuple[Tensor, Tensor, float]:
        """log p(y | x) and its standard error, (N, K), and the rows of network calls of an example."""
        model, counts = trained.denoiser, trained.class_counts
        denoisers = [model.given(label=torch.tensor(k, device=trained.device)) for k in classes]
        prior = [float(counts[k]) for k in classes] if self.prior == "counts" and counts is not None else None
        flow = {"probes": self.probes, "rtol": self.tolerance, "atol": self.tolerance}
        options: dict[str, Any] = flow if self.by == "ode" else {"samples": self.samples}
        parts = []
        with Progress("classification", len(x), "examples") as progress:
            for first, part in enumerate(x.split(max(1, batch_size // len(classes)))):
                batch = stream_seed(seed, "classification", first)
                parts.append(
                    class_posterior(denoisers, part.to(trained.device), prior=prior, by=self.by, seed=batch, **options)
                )
                progress.advance(len(part))
        log_prob, std_error = (
            torch.cat(values).cpu() for values in ([p.log_prob for p in parts], [p.std_error for p in parts])
        )
        return log_prob, std_error, float(torch.cat([p.nfe for p in parts]).double().mean())


def _labels(split: Split) -> Tensor:
    assert split.label is not None
    return split.label


def _words(found: Classification) -> str:
    return (
        f"{100 * found.accuracy:.1f} ± {100 * found.accuracy_std_error:.1f} % right, {found.nats:.3f} nats "
        f"a label, calibration error {100 * found.ece:.1f} %"
    )


def _confused(confusion: Tensor, names: list[str]) -> str:
    wrong = confusion - torch.diag(confusion.diag())
    if int(wrong.sum()) == 0:
        return "none is confused"
    i, j = divmod(int(wrong.argmax()), len(names))
    return f"most confused: {names[i]} taken for {names[j]}, {int(wrong[i, j])} of {int(confusion[i].sum())}"


def _write(out: Path, found: Classification, names: list[str], arrays: dict[str, Tensor], title: str) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the folder {out}: {error.strerror}. Choose another with out=...") from None
    plain = {key: value.tolist() if isinstance(value, Tensor) else value for key, value in found._asdict().items()}
    bins = {key: [None if value != value else value for value in plain[key]] for key in ("confidence", "right")}
    report = {"classes": names, **plain, **bins}
    write_atomically(out / "classification.json", json.dumps(report, indent=2).encode())
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{key: value.numpy() for key, value in arrays.items()})  # type: ignore[arg-type]
    write_atomically(out / "classification.npz", buffer.getvalue())
    picture = classification_picture(
        confusion=found.confusion, confidence=found.confidence, right=found.right, counts=found.counts, names=names,
        title=title,
    )  # fmt: skip
    write_atomically(out / "classification.png", png(picture))

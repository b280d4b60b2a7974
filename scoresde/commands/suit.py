"""`model=auto`: a network that suits the data, the device and the time, as a plain node of the configuration."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from scoresde.checks import check_numbers, check_sizes, check_whole
from scoresde.commands.arguments import complaint, shown, with_key
from scoresde.commands.budget import minutes
from scoresde.commands.build import FAILURES, ConfigError
from scoresde.commands.cost import Cost, mlp_cost, unet_cost
from scoresde.commands.device import pick_device
from scoresde.commands.fill import stage_sizes, stages_of
from scoresde.data import Dataset
from scoresde.models import MLP

AUTO = "scoresde.commands.AutoModel"
NETWORKS = ("unet", "mlp")  # of conf/model/auto.yaml
NOUNS = {"table": "rows", "series": "series", "image": "pictures", "volume": "volumes"}
SMALLEST = 6  # places along the longest axis, below which there is no U-Net
NOMINAL_MINUTES = 10.0  # of a training without a budget
NOMINAL_SPEED = {"cpu": 4e10, "gpu": 1e13}  # operations per second; never measured, so that a command finds its run
AFFORDABLE = 4e8  # operations per example that NOMINAL_MINUTES of a CPU allow; with more, of as many more examples
PARAMETERS_PER_EXAMPLE = 1e4  # times n^0.8, which is 2.3 million for 900 examples
FEWEST_EXAMPLES = 10_000  # seen in training, below which no network makes pictures
COARSE = 16  # places along the longest axis, to which shallow networks are halved, and where they attend
RUNGS = (  # patch, width, num_res_blocks, whether shallow: from the cheapest to the best, as far as a shape has them
    (4, 32, 1, True), (4, 48, 2, True), (2, 16, 1, True), (2, 24, 1, True), (2, 32, 2, True), (2, 48, 1, False),
    (1, 16, 1, False), (1, 24, 1, False), (1, 32, 1, False), (1, 48, 1, False), (1, 48, 2, False),
    (1, 64, 2, False), (1, 96, 2, False), (1, 128, 2, False), (1, 128, 4, False),
)  # fmt: skip
FEWEST_PATCHES = {1: math.inf, 2: 14, 3: math.inf}  # along the longest axis, by the number of axes: images only
NARROWEST_MLP, WIDEST_MLP, DEPTH_OF_MLP = 128, 2048, 4
OF_UNET = ("channel_mults", "num_res_blocks", "attention_resolutions")
OF_MLP = ("depth",)
PLAIN = {"fir": False, "progressive_input": "none"}  # what makes a U-Net fast


MLP_DEFAULTS = inspect.signature(MLP).parameters


class Means(NamedTuple):
    """What a training may cost.

    Args:
        minutes: How long it takes.
        device: "cpu" or "gpu".
        examples: Number n of training examples.
    """

    minutes: float
    device: str
    examples: int

    @property
    def operations(self) -> float:
        """Nominal number of operations in this time."""
        return 60 * self.minutes * NOMINAL_SPEED[self.device]

    @property
    def affordable(self) -> float:
        """Operations per example: the square root of all, as both the network and what it sees should grow."""
        reference = 60 * NOMINAL_MINUTES * NOMINAL_SPEED["cpu"]
        return AFFORDABLE * math.sqrt(self.operations / reference)

    def allow(self, cost: Cost) -> bool:
        """Whether a network is neither too slow nor too large."""
        return cost.operations <= self.affordable and cost.parameters <= PARAMETERS_PER_EXAMPLE * self.examples**0.8

    def seen(self, cost: Cost) -> float:
        """Examples that the training sees."""
        return self.operations / cost.operations


class Choice(NamedTuple):
    """A network: its node, what it costs, and what it is in words."""

    node: dict[str, Any]
    cost: Cost
    words: str


@dataclass(frozen=True, kw_only=True)
class AutoModel:
    """Picks a network for data of any shape: an `NCSNpp` for series, images and volumes, an `MLP` for tables.

        operations per example <= AFFORDABLE √(operations in the time / those of 10 minutes on a CPU)
        parameters             <= 10⁴ n^0.8                                for n training examples

    Of the networks within both limits it takes the largest. What is given here is fixed, and the rest follows.

    Args:
        width: Channels of the first stage, or width of the MLP.
        depth: Residual blocks of the MLP.
        channel_mults, num_res_blocks, attention_resolutions: Of the U-Net.
        dropout: Of either; None: 0.
    """

    width: int | None = None
    depth: int | None = None
    channel_mults: Sequence[int] | None = None
    num_res_blocks: int | None = None
    attention_resolutions: Sequence[int] | None = None
    dropout: float | None = None

    def __post_init__(self) -> None:
        sizes = {"width": self.width, "depth": self.depth, "num_res_blocks": self.num_res_blocks}
        check_whole("AutoModel", "width >= 2 or null", "depth >= 1 or null", "num_res_blocks >= 1 or null", **sizes)
        if self.channel_mults is not None:
            check_sizes("AutoModel", "channel_mults", self.channel_mults)
        if self.attention_resolutions is not None:
            check_sizes("AutoModel", "attention_resolutions", self.attention_resolutions, empty=True)
        if self.dropout is not None:
            check_numbers("AutoModel", "0 <= dropout < 1", dropout=self.dropout)

    def __call__(self, shape: Sequence[int], means: Means, unet: Mapping[str, Any], mlp: Mapping[str, Any]) -> Choice:
        """The network for data of a shape.

        Args:
            shape: Of one example, channels first.
            means: What it may cost.
            unet, mlp: Nodes of `NCSNpp` and `MLP`, whose other options are kept.
        Raises:
            ConfigError: If something is fixed that the network of this shape does not have.
        """
        if not takes_unet(shape):
            self._check_unused(OF_UNET, shape, "MLP")
            return self._mlp(shape, dict(mlp))
        self._check_unused(OF_MLP, shape, "NCSNpp")
        choices = list(self._unets(shape, dict(unet)))
        allowed = [choice for choice in choices if means.allow(choice.cost)]
        return allowed[-1] if allowed else min(choices, key=lambda choice: choice.cost.operations)

    def _unets(self, shape: Sequence[int], node: dict[str, Any]) -> Iterator[Choice]:
        """NCSN++ from the cheapest to the best."""
        channels, sizes = shape[0], list(shape[1:])
        for patch, width, blocks, shallow in self._rungs(sizes):
            stages = stages_of(sizes, patch)
            if shallow:
                stages = next(n for n, size in enumerate(stage_sizes(sizes, 16, patch), 1) if size <= COARSE)
            mults = list(self.channel_mults or [1] + [2] * (stages - 1))
            at = stage_sizes(sizes, len(mults), patch)
            attention = _attention(at) if self.attention_resolutions is None else list(self.attention_resolutions)
            options: dict[str, Any] = {"width": width, "channel_mults": mults, "num_res_blocks": blocks, "patch": patch}
            cost = unet_cost(channels, sizes, attends=[size in attention for size in at], **options)
            patches = f"patches of {patch}, " if patch > 1 else ""
            words = f"NCSNpp, {patches}width {width}, stages {' '.join(map(str, mults))}, {_attention_words(attention)}"
            plain = {key: value for key, value in PLAIN.items() if node.get(key) is None}
            filled = self._filled(node, attention_resolutions=attention, **plain, **options)
            yield Choice(filled, cost, words)

    def _mlp(self, shape: Sequence[int], node: dict[str, Any]) -> Choice:
        """An MLP that is wider than the entries are many: otherwise their noise does not pass through it."""
        entries = math.prod(shape)
        width = self.width or min(max(NARROWEST_MLP, 32 * math.ceil(2 * entries / 32)), WIDEST_MLP)
        options: dict[str, Any] = {"width": width, "depth": self.depth or DEPTH_OF_MLP}
        words = f"MLP, width {width}, depth {options['depth']}"
        return Choice(self._filled(node, **options), mlp_cost(entries, **options), words)

    def _rungs(self, sizes: Sequence[int]) -> list[tuple[int, int, int, bool]]:
        """Those of a shape, with what is fixed in place; small patches only in wide networks."""
        rungs, widest = [], 0
        for patch, width, blocks, shallow in RUNGS:
            if (patch == 1 or max(sizes) >= patch * FEWEST_PATCHES[len(sizes)]) and width >= widest:
                widest = width
                rungs.append((patch, self.width or width, self.num_res_blocks or blocks, shallow))
        return list(dict.fromkeys(rungs))

    def _filled(self, node: dict[str, Any], **options: Any) -> dict[str, Any]:
        return node | options | ({} if self.dropout is None else {"dropout": self.dropout})

    def _check_unused(self, names: Sequence[str], shape: Sequence[int], network: str) -> None:
        """Raise if something is fixed that a network does not have."""
        for name in names:
            if (value := getattr(self, name)) is not None:
                raise ConfigError(
                    f"model.{name}={shown(value)} has no use: model=auto picks {network} for examples of shape "
                    f"{tuple(shape)}, so leave it out."
                )


def suit(config: dict[str, Any], data: Dataset) -> dict[str, Any]:
    """The configuration with a plain network in place of model=auto, which is said in one line.

    Raises:
        ConfigError: If what is fixed of the network does not suit the data.
    """
    node = config.get("model")
    if not isinstance(node, Mapping) or node.get("_target_") != AUTO:
        return config
    fixed = {key: value for key, value in node.items() if key not in ("_target_", *NETWORKS)}
    if wrong := complaint(AutoModel, fixed, "model"):
        raise ConfigError(wrong)
    try:
        auto = AutoModel(**fixed)
    except FAILURES as error:
        raise ConfigError(with_key(str(error), AutoModel, fixed, "model")) from error
    given = minutes(config.get("budget")) or (config.get("trainer") or {}).get("minutes")
    device = "cpu" if pick_device(config.get("device")).type == "cpu" else "gpu"
    means = Means(given or NOMINAL_MINUTES, device, len(data.train))
    _check_inside(node)
    choice = auto(data.shape, means, **{name: node[name] for name in NETWORKS})
    print(f"model=auto: {choice.words}: {_millions(choice.cost)} M parameters, {_passes(config, data, means, choice)}")
    if given and (seen := means.seen(choice.cost)) < FEWEST_EXAMPLES:
        print(
            f"warning: {_length(given)} on {device} are about {_rounded(seen)} examples of shape {data.shape}, too few "
            f"for good samples: give about {math.ceil(given * FEWEST_EXAMPLES / seen)} min, or smaller examples."
        )
    if data.is_image and choice.node.get("wiener", "") is None:
        choice.node["wiener"] = "none"
    return config | {"model": choice.node}


def _check_inside(node: Mapping[str, Any]) -> None:
    """Raise if a network inside model=auto says what is chosen for it."""
    defaults = {"unet": {"patch": 1}, "mlp": {name: MLP_DEFAULTS[name].default for name in ("width", "depth")}}
    for network, known in defaults.items():
        for name in ("width", *(OF_UNET if network == "unet" else OF_MLP), "dropout", "patch"):
            value = node[network].get(name)
            if value not in (None, 0.0, known.get(name)):
                where = "model=ncsnpp" if name == "patch" else f"model.{name}"
                raise ConfigError(f"model.{network}.{name}={shown(value)} is what model=auto chooses: give {where}.")


def takes_unet(shape: Sequence[int]) -> bool:
    """Whether examples of a shape are series, images or volumes that a U-Net has stages for."""
    return 2 <= len(shape) <= 4 and max(shape[1:]) >= SMALLEST


def _attention(longest: Sequence[int]) -> list[int]:
    """The last stage attends, in networks of examples from 16 places along the longest axis on."""
    return [longest[-1]] if longest[0] >= 14 else []


def _attention_words(attention: Sequence[int]) -> str:
    return f"attention at {', '.join(map(str, attention))}" if attention else "no attention"


def _passes(config: Mapping[str, Any], data: Dataset, means: Means, choice: Choice) -> str:
    """How often the training sees the examples, in words."""
    trainer, what = config.get("trainer") or {}, f"{len(data.train):,} {NOUNS[data.kind]}"
    steps, accumulate = (trainer.get(key, 1) for key in ("steps", "accumulate"))
    if isinstance(steps, int) and isinstance(accumulate, int):  # what else they are is refused when they are used
        seen, when = (
            steps * accumulate * config["batch_size"],
            f"{steps:,} {'step' if steps == 1 else 'steps'}",
        )
    else:
        seen, when = means.seen(choice.cost), f"{_length(means.minutes)} on {means.device}"
    passes = seen / len(data.train)
    return f"about {_rounded(passes)} {'pass' if _rounded(passes) == '1' else 'passes'} over {what} in {when}"


def _length(minutes: float) -> str:
    return f"{minutes:.3g} min" if minutes >= 1 else f"{60 * minutes:.3g} s"


def _rounded(number: float) -> str:
    """Two digits, as 0.17, 24 or 3,100."""
    return f"{float(f'{number:.2g}'):,.10g}"


def _millions(cost: Cost) -> str:
    return f"{cost.parameters / 1e6:.2g}" if cost.parameters < 1e7 else f"{cost.parameters / 1e6:.0f}"

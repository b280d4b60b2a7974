"""Images per second of one NCSN++ training step: forward, backward, clipping, Adam and EMA.

    python benchmarks/training_step.py [--size tiny|cifar10] [--batch 4] [--threads 2] [--json OUT]
                                       [--reference DIR]

--reference takes a checkout of yang-song/score_sde_pytorch and times its network in the same run. The
checkout needs no change: its op/*.py compile a CUDA extension on import, which is skipped here, and CPU
tensors take its own native path. Rounds of all variants alternate and the table shows medians, so that a busy
machine hits all alike.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.models import NCSNpp

SIZES: dict[str, dict[str, Any]] = {
    "cifar10": {
        "width": 128,
        "channel_mults": (1, 2, 2, 2),
        "num_res_blocks": 4,
        "attention_resolutions": (16,),
    },
    "tiny": {"width": 32, "channel_mults": (1, 2, 2), "num_res_blocks": 1, "attention_resolutions": (16,)},
}
IMAGE_SIZE = 32


def our_network(size: str) -> nn.Module:
    """NCSN++ of the VE continuous CIFAR-10 configuration."""
    return NCSNpp(
        **SIZES[size],
        image_size=IMAGE_SIZE,
        progressive_input="residual",
        embedding="log_fourier",
        scale_by_sigma=True,
        centered=False,
    )


def reference_network(size: str, folder: Path) -> Any:
    """The same network of yang-song/score_sde_pytorch."""
    import torch.utils.cpp_extension

    torch.utils.cpp_extension.load = lambda *args, **kwargs: None
    sys.path.insert(0, str(folder))
    from models import ncsnpp  # type: ignore[import-not-found]

    options = SIZES[size]
    model = SimpleNamespace(
        nf=options["width"],
        ch_mult=options["channel_mults"],
        num_res_blocks=options["num_res_blocks"],
        attn_resolutions=options["attention_resolutions"],
        dropout=0.1,
        resamp_with_conv=True,
        conditional=True,
        fir=True,
        fir_kernel=[1, 3, 3, 1],
        skip_rescale=True,
        resblock_type="biggan",
        progressive="none",
        progressive_input="residual",
        progressive_combine="sum",
        embedding_type="fourier",
        fourier_scale=16,
        init_scale=0.0,
        nonlinearity="swish",
        scale_by_sigma=True,
        sigma_min=0.01,
        sigma_max=50,
        num_scales=1000,
    )
    data = SimpleNamespace(image_size=IMAGE_SIZE, num_channels=3, centered=False)
    return ncsnpp.NCSNpp(SimpleNamespace(model=model, data=data, training=SimpleNamespace(continuous=True)))


def training_step(
    net: nn.Module, x: Tensor, sigma: Tensor, *, bf16: bool, whole: bool
) -> Callable[[], dict[str, float]]:
    """A function that runs one step and returns the seconds of its parts."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=2e-4)
    averages = [p.detach().clone() for p in parameters] if whole else []

    def step() -> dict[str, float]:
        marks = [(time.perf_counter(), time.process_time())]

        def mark() -> None:
            marks.append((time.perf_counter(), time.process_time()))

        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            out = net(x, sigma)
        loss = (out.float() * sigma[:, None, None, None] + x).square().mean()
        mark()
        optimizer.zero_grad()
        loss.backward()
        mark()
        if whole:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1e-4)
            mark()
        forward, backward = marks[1][0] - marks[0][0], marks[2][0] - marks[1][0]
        return {
            "forward": forward,
            "backward": backward,
            "forward_backward": forward + backward,
            "step": marks[-1][0] - marks[0][0],
            "cpu": marks[2][1] - marks[0][1],
        }

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="cifar10", help="network size (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="images per step (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (default: %(default)s)")
    parser.add_argument("--no-update", action="store_true", help="leave out clipping, Adam and EMA")
    parser.add_argument("--reference", type=Path, help="checkout of yang-song/score_sde_pytorch to time as well")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = torch.rand(args.batch, 3, IMAGE_SIZE, IMAGE_SIZE)
    sigma = torch.exp(torch.empty(args.batch).uniform_(-3, 3))
    x_last = x.to(memory_format=torch.channels_last)
    ours = our_network(args.size)
    last, bf16 = (copy.deepcopy(ours).to(memory_format=torch.channels_last) for _ in range(2))  # type: ignore[call-overload]

    whole = not args.no_update
    steps = {
        "eager": training_step(ours, x, sigma, bf16=False, whole=whole),
        "channels_last": training_step(last, x_last, sigma, bf16=False, whole=whole),
        "bf16 + channels_last": training_step(bf16, x_last, sigma, bf16=True, whole=whole),
    }
    if args.reference is not None:
        reference = reference_network(args.size, args.reference)
        steps["reference"] = training_step(reference, x, sigma, bf16=False, whole=whole)

    times: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for round_number in range(args.rounds + 1):
        for name, step in steps.items():
            result = step()
            if round_number > 0:
                times[name].append(result)

    medians = {name: {key: statistics.median(r[key] for r in rows) for key in rows[0]} for name, rows in times.items()}
    print(f"NCSN++ {args.size}, batch {args.batch}, {args.threads} threads, torch {torch.__version__}")
    columns = ("forward s", "backward s", "fwd+bwd CPU s", "fwd+bwd img/s", "step img/s", "speed-up")
    print(f"{'':22}" + "".join(f"{column:>15}" for column in columns))
    for name, row in medians.items():
        row["images_per_second"] = args.batch / row["forward_backward"]
        row["images_per_second_step"] = args.batch / row["step"]
        speed_up = ""
        if "reference" in medians:
            row["speed_up"] = medians["reference"]["forward_backward"] / row["forward_backward"]
            speed_up = f"{row['speed_up']:.2f}x"
        print(
            f"{name:22}{row['forward']:15.3f}{row['backward']:15.3f}{row['cpu']:15.3f}"
            f"{row['images_per_second']:15.2f}{row['images_per_second_step']:15.2f}{speed_up:>15}"
        )
    if args.json is not None:
        report = {"size": args.size, "batch": args.batch, "threads": args.threads, "torch": torch.__version__}
        args.json.write_text(json.dumps({**report, "seconds": medians}, indent=2) + "\n")


if __name__ == "__main__":
    main()

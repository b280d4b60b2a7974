"""The device that a command works on."""

from __future__ import annotations

import torch

from scoresde.commands.build import ConfigError


def pick_device(device: str | None) -> torch.device:
    """The device asked for, or a GPU if there is one."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.ones(1, device=device).item()  # which a device without memory, as "meta", cannot do
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={device} cannot be used here: {str(error).splitlines()[0]}") from None

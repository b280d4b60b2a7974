"""Metrics and pictures in Weights & Biases, without ever waiting for an account or a network."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from scoresde.checks import check_numbers, check_text
from scoresde.files import inside, write_atomically
from scoresde.streams import say
from scoresde.training.loggers import CSVLogger, Logger, MultiLogger
from scoresde.training.run import RunDirectory


@dataclass(eq=False, repr=False)
class WandbLogger:
    """Logs to wandb: offline unless WANDB_API_KEY is set, or WANDB_MODE says otherwise.

    Files stay under the run directory, in `wandb/`; `wandb sync` uploads an offline run. A resumed run keeps
    its id. If wandb is missing, disabled or cannot start, one sentence says so and training goes on.

    Args:
        run: The run directory.
        project: wandb project.
        entity: wandb team or user; None: the account's own.
        name: Display name; None: the run directory's.
        tags: wandb tags.
        timeout: Seconds to wait for the server at the start, and for uploads at the end.
    """

    run: RunDirectory
    _: KW_ONLY
    project: str = "scoresde"
    entity: str | None = None
    name: str | None = None
    tags: Sequence[str] = ()
    timeout: float = 20.0

    def __post_init__(self) -> None:
        check_numbers(self, "0 < timeout <= 1e6")
        for name in ("project", "entity", "name"):
            check_text(self, name, getattr(self, name), optional=name != "project")
        if len(self.project) > 128 or set(self.project) & set("/\\#?%:"):
            raise ValueError(f"WandbLogger needs project of up to 128 letters, none of /\\#?%:, got {self.project!r}.")
        if not isinstance(self.tags, list | tuple) or not all(isinstance(tag, str) for tag in self.tags):
            raise ValueError(f"WandbLogger needs tags to be a list of texts, got {self.tags!r}.")
        self._wandb: Any = None
        self._session: Any = None

    def start(self, step: int) -> None:
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        if mode == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
            say("wandb is disabled by the environment: metrics go to metrics.csv only.")
            return
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            import wandb
        except ImportError:
            say("wandb is not installed: metrics go to metrics.csv only (pip install wandb).")
            return
        self._wandb = wandb
        for attempt in dict.fromkeys((mode, "offline")):
            try:
                self._session = self._init(attempt)
                return
            except Exception as error:  # no key, no network, no permission: none of them may stop a training run
                reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
                instead = "going on offline" if attempt != "offline" else "metrics go to metrics.csv only"
                wandb.teardown()  # lets go of the run's id
                say(f"wandb could not start in {attempt} mode ({reason.rstrip('.')}): {instead}.")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._session is not None:
            self._session.log(dict(metrics), step=step)

    def image(self, step: int, path: Path) -> None:
        if self._session is not None:
            self._session.log({"samples": self._wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        if self._session is not None:
            self._session.finish()
            self._session = None

    def _init(self, mode: str) -> Any:
        settings = self._wandb.Settings(
            mode=mode, silent=True, console="off", init_timeout=self.timeout, login_timeout=self.timeout,
            finish_timeout=self.timeout, save_code=False, disable_git=True,
        )  # fmt: skip
        return self._wandb.init(
            project=self.project, entity=self.entity, name=self.name or self.run.path.name, tags=list(self.tags),
            id=self._run_id(), resume="allow" if mode == "online" else None, dir=str(self.run.path),
            config={"config": self.run.config_text} if self.run.config.is_file() else None, settings=settings,
        )  # fmt: skip

    def _run_id(self) -> str:
        path = inside(self.run, self.run.path / "wandb") / "run_id"
        kept = path.read_text(encoding="utf-8")[:65].strip() if path.is_file() else ""
        if not re.fullmatch("[0-9a-z]{1,64}", kept):
            kept = uuid.uuid4().hex[:16]
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, kept.encode())
        return kept


def csv_and_wandb(
    run: RunDirectory, *, project: str = "scoresde", entity: str | None = None, name: str | None = None,
    tags: Sequence[str] = (), timeout: float = 20.0,
) -> Logger:  # fmt: skip
    """`CSVLogger` and `WandbLogger` together; arguments are those of `WandbLogger`."""
    wandb = WandbLogger(run, project=project, entity=entity, name=name, tags=tags, timeout=timeout)
    return MultiLogger([CSVLogger(run), wandb])

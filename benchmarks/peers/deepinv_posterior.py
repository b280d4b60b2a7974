"""deepinv (0.5): its data terms, with the VP diffusion and its ancestral solvers. It calls denoisers in float32."""

from __future__ import annotations

from typing import Any

import deepinv
import torch
from posterior_rows import Row, Task
from torch import Tensor

sampling = deepinv.sampling
LAST = 1e-3  # time at which its runs end here


class BlackBox(deepinv.models.Denoiser):
    """E[x0 | x0 + σ ε] of events (B, 1, 1, d)."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, x: Tensor, sigma: Any, **kwargs: Any) -> Tensor:
        level = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1)
        return self.task.denoised(x.reshape(len(x), -1).double(), 1.0, level).reshape(x.shape).to(x.dtype)


def physics(task: Task) -> Any:
    A, shape = task.problem.A, (1, 1, task.problem.mu.shape[1])
    return deepinv.physics.LinearPhysics(
        A=lambda x, **kwargs: x.reshape(len(x), -1) @ A.T.to(x),
        A_adjoint=lambda y, **kwargs: (y @ A.to(y)).reshape(len(y), *shape),
        img_size=shape,
        noise_model=deepinv.physics.GaussianNoise(task.problem.sigma_y),
    )


def of_data_term(name: str, kind: str, solver: str, **options: Any) -> Row:
    def run(task: Task) -> Tensor:
        d, d_y = task.problem.size
        chosen = {key: d_y if value == "d_y" else value for key, value in options.items()}
        times = torch.linspace(1.0, LAST, task.steps + 1, dtype=torch.float64)
        generator = torch.Generator().manual_seed(task.generator.initial_seed())
        model = sampling.PosteriorDiffusion(
            data_fidelity=getattr(sampling, kind)(**chosen),
            denoiser=BlackBox(task),
            sde=sampling.VariancePreservingDiffusion(alpha=1.0),
            solver=getattr(sampling, solver)(timesteps=times, rng=generator),
            minus_one_one=False,
        )
        y = task.problem.y.expand(task.samples, d_y)
        result: Tensor = model(y, physics(task), x_init=(task.samples, 1, 1, d))
        return result.detach().reshape(task.samples, d).double()

    return Row(name, solver, run)


ROWS = [
    of_data_term("MomentMatching", "MomentMatchingDataFidelity", "DDPMSolver", cg_max_iter="d_y"),
    of_data_term("MomentMatching", "MomentMatchingDataFidelity", "DDIMSolver", cg_max_iter="d_y"),
    of_data_term("PiGDM", "PiGDMDataFidelity", "DDPMSolver", cg_max_iter="d_y"),
    of_data_term("DPS annealed", "DPSDataFidelity", "DDPMSolver", guidance="annealed"),
    of_data_term("DPS norm", "DPSDataFidelity", "DDPMSolver", guidance="norm"),
]

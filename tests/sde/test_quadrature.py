from __future__ import annotations

import pytest
import torch

from scoresde.sde.quadrature import gauss_legendre


@pytest.mark.parametrize("points", [1, 4, 8, 32])
def test_gauss_legendre_is_exact_for_polynomials(points: int) -> None:
    gauss_legendre.cache_clear()
    with torch.inference_mode():
        gauss_legendre(points)
    nodes, masses = gauss_legendre(points)
    degrees = torch.arange(2 * points, dtype=torch.float64, requires_grad=True)
    integrals = (masses[:, None] * nodes[:, None] ** degrees).sum(0)
    torch.testing.assert_close(integrals, 1 / (degrees + 1), rtol=1e-13, atol=0)
    integrals.sum().backward()

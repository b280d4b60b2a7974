"""What the README shows is what works."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_example_trains_samples_and_gives_likelihoods(capsys: pytest.CaptureFixture[str]) -> None:
    example = next(block for block in BLOCKS if "DenoisingLoss" in block)
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    exec(compile(example.replace("range(2000)", "range(20)"), "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert len(re.findall(r"[-\d.]+e?[-+\d]*", shown)) >= 11  # three points and five log-likelihoods


def test_example_of_a_users_process_passes_the_check() -> None:
    exec(compile(next(block for block in BLOCKS if "check_sde" in block), "README.md", "exec"), {})


def test_example_of_the_likelihood_guide(capsys: pytest.CaptureFixture[str]) -> None:
    guide = (Path(__file__).resolve().parent.parent / "docs/likelihood.md").read_text(encoding="utf-8")
    variables: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", guide, re.S):
        exec(compile(block, "likelihood.md", "exec"), variables)
    exact = variables["denoiser"].log_prob(variables["x"], torch.tensor(variables["VPSDE"]().t_min))
    torch.testing.assert_close(variables["result"].log_prob, exact, rtol=0, atol=0.02)
    assert capsys.readouterr().out.count("tensor(") == 4


def test_set_up_lines_are_whole() -> None:
    install = "python3 -m venv .venv && . .venv/bin/activate && pip install -e {} -c constraints.txt && {}"
    assert install.format(".", "python train.py sde=vp model=ncsnpp && python sample.py solver=ode") in README
    assert install.format("'.[test]'", "python -m pytest") in README


def test_readme_names_files_that_exist() -> None:
    root = Path(__file__).resolve().parent.parent
    for target in re.findall(r"\]\(([\w./]+)\)", README):
        assert (root / target).exists(), target

"""What the README and the guides show is what works."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import command, inside

from scoresde import DDIM, VPSDE, GaussianMixtureDenoiser, StraightSDE
from scoresde.cli import sample_main, train_main
from scoresde.interop import velocity_field
from scoresde.interop.flow import CONVENTIONS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(page: str) -> list[str]:
    """The Python examples of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)


def block(page: str, word: str) -> str:
    """The first example that holds a word."""
    return next(block for block in blocks(page) if word in block)


def run(example: str, page: str, variables: dict[str, Any]) -> None:
    exec(compile(example, page, "exec"), variables)


def test_example_trains_samples_and_gives_likelihoods(capsys: pytest.CaptureFixture[str]) -> None:
    example = block("README.md", "DenoisingLoss")
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    run(example.replace("range(2000)", "range(20)"), "README.md", {})
    shown = capsys.readouterr().out
    assert len(re.findall(r"[-\d.]+e?[-+\d]*", shown)) >= 11  # three points and five log-likelihoods


def test_five_lines_from_an_array_to_samples_and_log_p(tmp_path: Path) -> None:
    small = 'budget=None, overrides=["trainer.steps=2", "model.width=8", "model.depth=1", "trainer.progress=false"]'
    example, variables = block("README.md", "scoresde.fit"), {"x": torch.rand(300, 3)}
    assert len(example.strip().splitlines()) <= 6
    with inside(tmp_path):
        run(example.replace('budget="2min"', small), "README.md", variables)
    again: Any = variables["again"]
    assert variables["samples"].shape == (1000, 3) and variables["log_p"].shape == (10,)
    assert (again.sample(4) == variables["samples"][:4]).all()


def test_example_of_a_users_process_passes_the_check() -> None:
    run(block("README.md", "check_sde"), "README.md", {})


def test_examples_of_flows_run() -> None:
    """README's lines, and those of docs/flow.md about networks of others and another process, on an exact model."""
    law = GaussianMixtureDenoiser.random(VPSDE(), 2, 3, generator=torch.Generator().manual_seed(0))
    net = velocity_field(law, "torchcfm")
    variables: dict[str, Any] = {"torch": torch, "net": net, "x0": law.sample(64).float(), "denoiser": law}
    shortened = (
        block("README.md", "flow_denoiser").replace("(100, 2)", "(4, 2)").replace("x0, probes", "x0[:2], probes")
    )
    run(shortened, "README.md", variables)
    assert variables["samples"].isfinite().all() and variables["result"].std_error.shape == (2,)
    page = (ROOT / "docs/flow.md").read_text(encoding="utf-8")
    for example in re.findall(r"```python\n(.*?)```", page[page.index("## Networks of others") :], re.S):
        run(example, "flow.md", variables | {"StraightSDE": StraightSDE, "DDIM": DDIM})
    for name, row in CONVENTIONS.items():  # the table is the code's
        line = next(line for line in page.splitlines() if line.startswith(f'| `"{name}"`'))
        call = "net(" + row.call + ")"
        assert all(word in line for word in (f"`{call}`", f"| {row.scale:g} |"))
        assert (
            ("data 0, noise 1" in line) == (row.time == "data_to_noise") == ("noise − data" in line) == (row.sign == 1)
        )


def test_example_of_the_likelihood_guide(capsys: pytest.CaptureFixture[str]) -> None:
    variables: dict[str, Any] = {}
    for example in blocks("docs/likelihood.md"):
        run(example, "likelihood.md", variables)
    exact = variables["denoiser"].log_prob(variables["x"], torch.tensor(variables["VPSDE"]().t_min))
    torch.testing.assert_close(variables["result"].log_prob, exact, rtol=0, atol=0.02)
    assert capsys.readouterr().out.count("tensor(") == 4
    flow, bound = variables["flow"], variables["bound"]  # the same law on the straight path
    assert ((flow.log_prob - exact).abs() < 6 * flow.std_error + 0.01).all()
    assert ((bound.log_prob - exact).abs() < 8 * bound.std_error + 0.01).all()
    assert bool((variables["low"] < variables["high"]).all())


def test_examples_of_own_classes_are_a_module_that_the_command_lines_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text("\n".join(blocks("docs/extending.md")))  # its checks run when it is imported
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    for path, text in re.findall(r"\| `(myconf/\S+)` \| `(\{.*?\})`", page):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ("--config-dir", str(tmp_path / "myconf"), "extensions=[mine]")
    try:
        command(train_main, *own, "sde=mine", "data=mine", "model=mlp", "logger=csv", "trainer.steps=3", "run=runs/a")
        groups = ("solver=mine", "guidance=mine", "likelihood=mine")
        command(sample_main, *own, *groups, "solver.steps=3", "num_samples=4", "likelihood.num_examples=4")
    finally:
        sys.modules.pop("mine", None)
    shown = capsys.readouterr().out
    assert "ExponentialEuler(steps=3), 4 samples" in shown
    assert "log p" in shown and "(quick)" in shown


def test_set_up_lines_are_whole() -> None:
    install = "python3 -m venv .venv && . .venv/bin/activate && pip install -e {} -c constraints.txt && {}"
    assert install.format(".", "python train.py sde=vp model=ncsnpp && python sample.py solver=ode") in README
    assert install.format("'.[test]'", "python -m pytest") in README


def test_readme_names_files_that_exist() -> None:
    for target in re.findall(r"\]\(([\w./]+)\)", README):
        assert (ROOT / target).exists(), target


def test_page_of_solvers_names_every_solver_and_fits_an_editor() -> None:
    page = (ROOT / "docs/solvers.md").read_text(encoding="utf-8")
    assert max(map(len, page.splitlines())) <= 120
    for path in sorted((ROOT / "conf/solver").glob("*.yaml")):
        assert f"`solver={path.stem}" in page, path.name

"""Options as the command line has them: none is ignored, what is mistyped is told what was meant, all are listed."""

from pathlib import Path

import pytest
import yaml
from campaigns.option_trials import Trial, bases, flat
from campaigns.options import MISSES, campaign, run
from command_line import command

from scoresde.cli import config_dir, sample_main, train_main
from scoresde.cli.help import group_help, help_text

TOY = ("experiment=toy", "data.size=64", "batch_size=4", "model.width=8", "trainer.steps=1", "logger=csv", "run=new")


def test_a_sample_of_the_campaign() -> None:
    outcomes = campaign(6, 3, only="sde=")
    assert not [outcome for outcome in outcomes if outcome.verdict in MISSES]
    assert sum(outcome.verdict == "unnamed" for outcome in outcomes) <= 1


def test_every_experiment_and_loss_takes_a_step() -> None:
    """At reduced width, and on small files of the right kind: CIFAR-10's too."""
    chosen = [base for base in bases() if base.group in ("experiment", "loss", "optimizer")]
    outcomes = run([Trial("plain", base, "seed=0", True) for base in chosen])
    assert [f"{outcome.trial}: {outcome.said}" for outcome in outcomes if outcome.verdict != "accepted"] == []
    assert len(outcomes) > 25


def test_help_lists_every_key() -> None:
    shown = group_help("all")
    for path in config_dir().glob("*/*.yaml"):
        group = path.parent.name
        for key in flat(yaml.safe_load(path.read_text())):
            assert f"  {key if group == 'experiment' else f'{group}.{key}'}=" in shown, path
    for name in ("train", "sample"):
        for key in flat(yaml.safe_load((config_dir() / f"{name}.yaml").read_text())):
            assert f"{key.rpartition('.')[2]}:" in help_text(name)
        assert "help=solver" in help_text(name)


def test_help_of_a_group_says_what_its_keys_take(capsys: pytest.CaptureFixture[str]) -> None:
    command(train_main, "help=optimizer.adamw")
    said = capsys.readouterr().out
    assert "optimizer=adamw    torch.optim.AdamW" in said
    assert "optimizer=adam " not in said
    command(sample_main, "help=solver=ode")
    line = next(line for line in capsys.readouterr().out.splitlines() if "solver.rtol=" in line)
    assert line.split(maxsplit=1)[0] == "solver.rtol=1.0e-3"
    assert "a number; enough for pictures" in line
    with pytest.raises(SystemExit, match=r"did you mean trainer\?"):
        command(train_main, "help=trainr")
    with pytest.raises(SystemExit, match="names no option of solver: there is adaptive_sde, "):
        command(sample_main, "help=solver.nothing")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("experiment=digits_vmd", r"Could not find 'experiment/digits_vmd': .* did you mean experiment=digits_vdm\?"),
        ("trainer.warmpu=1", r"trainer has no key 'warmpu': did you mean trainer.warmup\?"),
        ("solver=ddim", "train.py has no key 'solver', but sample.py has"),
        ("+conditonal=true", r"conditonal is no key of train.py, .* did you mean conditional\?"),
        ("+seed=1", r"there is seed already: leave out the \+"),
        ("conditional=no", "conditional needs true or false, got 'no': write conditional=false."),
        ("seed=0.5", "seed needs a whole number, got 0.5"),
        ("batch_size=abc", "batch_size needs a whole number, got 'abc'"),
        ("run=5", "run needs text, or null, got 5"),
        ("~sde", "~sde removes sde, which train.py needs"),
        ("sde=[vp,ve]", r"sde=\[vp,ve\] names no option of sde"),
        ("seed=[", r"seed=\[ cannot be read"),
        ("seed=${sed}", "seed: Interpolation key 'sed' not found"),
        ("device=meta", "device=meta cannot be used here"),
        ("optimizer.betas=[]", r"optimizer needs betas .* got \[\]"),
    ],
)
def test_what_is_mistyped(option: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message) as stopped:
        command(train_main, *TOY, option)
    assert "\n" not in str(stopped.value.code)
    assert list(tmp_path.iterdir()) == []


def test_keys_of_a_recipe_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipes = tmp_path / "conf/experiment"
    recipes.mkdir(parents=True)
    (recipes / "typo.yaml").write_text("# @package _global_\nbach_size: 4\n")
    (recipes / "typos.yaml").write_text("# @package _global_\ntrainer:\n  stpes: 4\n")
    (recipes / "wide.yaml").write_text("# @package _global_\nbreadth: 8\nmodel:\n  width: ${breadth}\n")
    small = ("--config-dir", "conf", "data=toy", "model=mlp", "logger=csv", "trainer.steps=1", "batch_size=4")
    with pytest.raises(SystemExit, match=r"bach_size is no key of train.py.*: did you mean batch_size\?"):
        command(train_main, *small, "experiment=typo")
    with pytest.raises(SystemExit, match=r"trainer.stpes is no argument of Trainer: did you mean trainer.steps\?"):
        command(train_main, *small, "experiment=typos")
    with pytest.raises(SystemExit, match=r"did you mean experiment=typos\?"):
        command(train_main, *small, "experiment=tipos")
    command(train_main, *small, "experiment=wide", "run=new")
    assert "width: 8" in Path("new/config.yaml").read_text()

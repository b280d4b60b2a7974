"""Data of fewer examples than a batch."""

import pytest

from scoresde.commands.train import with_batch_size
from scoresde.data import digits


def test_a_batch_is_at_most_all_training_examples(capsys: pytest.CaptureFixture[str]) -> None:
    data = digits()
    assert with_batch_size({"batch_size": 897}, data) == {"batch_size": 897}
    assert capsys.readouterr().out == ""
    assert with_batch_size({"batch_size": 5000, "seed": 1}, data) == {"batch_size": 897, "seed": 1}
    assert capsys.readouterr().out == "batch_size=5000 is more than the 897 training examples: all are a batch.\n"

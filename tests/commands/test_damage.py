"""A sample of the damaged files of `tests/campaigns/damage.py`: none goes unnoticed."""

from campaigns.damage import FILES, MISSES, campaign


def test_a_damaged_file_is_refused_or_replaced_with_a_word() -> None:
    outcomes = campaign(count=len(FILES), seed=7)
    assert {outcome.trial.file for outcome in outcomes} == set(FILES)
    assert not [outcome for outcome in outcomes if outcome.verdict in MISSES]

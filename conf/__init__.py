"""Configuration tree of train.py and sample.py; installed as scoresde.conf."""

"""Train a model: python train.py sde=vp model=ncsnpp data=digits."""

from scoresde.cli import train_main

if __name__ == "__main__":
    train_main()

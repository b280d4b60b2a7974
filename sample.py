"""Draw samples from a trained model, and evaluate its likelihood: python sample.py solver=ode."""

from scoresde.cli import sample_main

if __name__ == "__main__":
    sample_main()

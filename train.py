"""Train a model: ``python train.py model=conv optimization=fwdgrad``; every key is in ``configs/train.yaml``."""

from fwdgrad.cli import train

if __name__ == "__main__":
    train()

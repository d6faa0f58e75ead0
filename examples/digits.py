"""Teaches torchvision's ResNet-18, a plain nn.Module, to read handwritten digits; each epoch sees each one moved differently.

python examples/prepare_digits.py
scalekit launch --nproc 2 examples/digits.py
"""

import sys

import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.transforms import v2

import scalekit

AS_SEEN = v2.Compose([v2.Resize(32), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
MOVED = v2.Compose([AS_SEEN, v2.RandomAffine(degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1))])


def model() -> nn.Module:
    return resnet18(num_classes=10)


def train(strategy: str = "ddp") -> scalekit.Run:
    return scalekit.fit(
        model,
        "build/digits/images",
        "image-classification",
        loss=nn.CrossEntropyLoss(),
        transform=MOVED,
        validation_transform=AS_SEEN,
        strategy=strategy,
        global_batch_size=32,
        micro_batch_size=16,
        max_steps=100,
        learning_rate=1e-3,
        warmup_steps=10,
        weight_decay=0.05,
        evaluate_every=50,
        seed=1,
        output_dir="runs/digits",
    )


if __name__ == "__main__":
    train(*sys.argv[1:])

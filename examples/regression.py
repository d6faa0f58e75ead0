"""The classic y = 2x: the loop that everybody writes, and the line that it becomes.

python examples/regression.py
scalekit launch --nproc 2 examples/regression.py
"""

import torch
from torch import nn

import scalekit

ROWS = [{"x": [float(i)], "y": [2.0 * i]} for i in range(1, 5)]
STEPS, LEARNING_RATE = 100, 0.01


def by_hand() -> nn.Linear:
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    x = torch.tensor([row["x"] for row in ROWS])
    y = torch.tensor([row["y"] for row in ROWS])
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for _ in range(STEPS):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def by_scalekit() -> scalekit.Run:
    return scalekit.fit(
        lambda: nn.Linear(1, 1),
        ROWS,
        loss=nn.MSELoss(),
        optimizer="sgd",
        learning_rate=LEARNING_RATE,
        lr_schedule="constant",
        gradient_clip=None,
        global_batch_size=len(ROWS),
        max_steps=STEPS,
        seed=0,
    )


if __name__ == "__main__":
    run = by_scalekit()
    print(f"by ScaleKit  y = {run.model.weight.item():.6f} x + {run.model.bias.item():.6f}")
    hand = by_hand()
    print(f"by hand      y = {hand.weight.item():.6f} x + {hand.bias.item():.6f}")

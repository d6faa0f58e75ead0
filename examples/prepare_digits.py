"""Lays out what `digits.py` and `digits_vit.yaml` start from: the handwritten digits that come with scikit-learn.

Writes under build/digits/:
    images/         a data set of 1,797 grey images of 8 x 8 pixels; every fifth is held out
    vit/            a Vision Transformer for such images, as a Hugging Face folder; its weights are random
    baseline.json   the accuracy of the nearest class mean
"""

from pathlib import Path

import numpy as np
from ingredients import write_baseline
from sklearn.datasets import load_digits

FOLDER = Path("build/digits")
SIZE, HELD_OUT = 8, 5


def write_images(folder: Path) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
    from PIL import Image as Pillow

    digits = load_digits()
    rows = [
        {"image": Pillow.fromarray(np.uint8(pixels * 255 / 16)), "label": label}
        for pixels, label in zip(digits.images, digits.target.tolist(), strict=True)
    ]
    features = Features({"image": Image(), "label": ClassLabel(names=list("0123456789"))})
    held_out = is_held_out(len(rows))
    parts = {
        "train": [rows[i] for i in np.flatnonzero(~held_out)],
        "validation": [rows[i] for i in np.flatnonzero(held_out)],
    }
    DatasetDict({name: Dataset.from_list(part, features) for name, part in parts.items()}).save_to_disk(folder)
    print(f"{len(rows)} images in {folder}, of which {held_out.sum()} are held out")


def is_held_out(count: int) -> np.ndarray:
    return np.arange(count) % HELD_OUT == HELD_OUT - 1


def nearest_mean() -> float:
    pixels, labels = load_digits(return_X_y=True)
    held_out = is_held_out(len(labels))
    means = np.stack([pixels[~held_out & (labels == label)].mean(axis=0) for label in range(10)])
    distances = ((pixels[held_out, None] - means) ** 2).sum(axis=-1)
    return float((distances.argmin(axis=1) == labels[held_out]).mean())


def write_vit(folder: Path) -> None:
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    shape = {"image_size": SIZE, "patch_size": 2, "hidden_size": 64, "intermediate_size": 128}
    config = ViTConfig(**shape, num_hidden_layers=2, num_attention_heads=4, num_labels=10)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)


if __name__ == "__main__":
    write_images(FOLDER / "images")
    write_baseline(FOLDER, "the nearest class mean", accuracy=nearest_mean())
    write_vit(FOLDER / "vit")

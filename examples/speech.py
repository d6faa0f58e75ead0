"""Teaches a small network to understand ten spoken words, in voices that it has never heard.

python examples/prepare_speech.py
scalekit launch --nproc 2 examples/speech.py
"""

import sys

import torch
from torch import Tensor, nn
from torchaudio.transforms import FrequencyMasking, MelSpectrogram, TimeMasking

import scalekit

RATE, MELS = 8_000, 40
SPECTROGRAM = MelSpectrogram(RATE, n_fft=256, hop_length=80, n_mels=MELS)
MASKS = nn.Sequential(FrequencyMasking(6), TimeMasking(15))


def heard(wave: Tensor, delay: float = 0.0) -> Tensor:
    """The logarithm of a second's mel spectrogram, shape [mels, frames]; the wave starts `delay` seconds late."""
    late = nn.functional.pad(wave, (int(delay * RATE), RATE))[:RATE]
    return torch.log(SPECTROGRAM(late) + 1e-5)


def heard_anew(wave: Tensor) -> Tensor:
    """The same with a random delay, and with some frequencies and times masked: other ones each time."""
    return MASKS(heard(wave, 0.2 * torch.rand(()).item()))


class Listener(nn.Module):
    """Convolutions, then a recurrent layer over what they find, then its mean over time."""

    def __init__(self, words: int = 10, width: int = 64) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, MELS)
        self.convolutions = nn.Sequential(
            *(nn.Conv1d(MELS, width, 5, stride=2, padding=2), nn.GELU()),
            *(nn.Conv1d(width, width, 5, stride=2, padding=2), nn.GELU()),
        )
        self.recurrent = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.word = nn.Linear(2 * width, words)

    def forward(self, input_values: Tensor) -> Tensor:
        """Scores of the words, shape [batch, words], of spectrograms, shape [batch, mels, frames]."""
        found = self.convolutions(self.norm(input_values))
        states, _ = self.recurrent(found.transpose(1, 2))
        return self.word(states.mean(dim=1))


def train(strategy: str = "ddp") -> scalekit.Run:
    return scalekit.fit(
        Listener,
        "build/speech/sounds",
        "audio-classification",
        loss=nn.CrossEntropyLoss(),
        transform=heard_anew,
        validation_transform=heard,
        sampling_rate=RATE,
        strategy=strategy,
        global_batch_size=32,
        micro_batch_size=16,
        max_steps=200,
        learning_rate=2e-3,
        warmup_steps=20,
        evaluate_every=100,
        seed=1,
        output_dir="runs/speech",
    )


if __name__ == "__main__":
    train(*sys.argv[1:])

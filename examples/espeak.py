"""The speech synthesizer eSpeak NG, through the library that the package espeakng-loader carries (GPL-3.0)."""

import ctypes
import io
import wave
from typing import final

from ingredients import package_folder

# From espeak-ng's speak_lib.h.
SYNCHRONOUS, TEXT_IS_UTF8, POSITION_IS_CHARACTER = 2, 1, 1
SPEED, PITCH = 1, 3


@final
class Espeak:
    """Says words, and spells out how they are said. The library has one state, so have one of these.

    Attributes:
        rate: of its sounds, in Hz.
    """

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = str(package_folder("espeakng_loader") / "espeak-ng-data")
        self.rate: int = self._library.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), 0)
        if self.rate <= 0:
            raise SystemExit(f"eSpeak NG does not start with the data in {data}")
        self._samples = bytearray()
        self._callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)(
            self._collect
        )
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p

    def say(self, text: str, voice: str, words_a_minute: int = 175, pitch: int = 50) -> bytes:
        """A WAV file: one channel, 16 bits a sample.

        Args:
            text: to say.
            voice: a language, or one with a variant, such as ``en-us+f2``.
            words_a_minute: the speed, from 80 to 450.
            pitch: from 0 to 100.
        """
        self._use(voice)
        self._library.espeak_SetParameter(SPEED, words_a_minute, 0)
        self._library.espeak_SetParameter(PITCH, pitch, 0)
        self._samples.clear()
        said = text.encode()
        size = ctypes.c_size_t(len(said) + 1)
        self._library.espeak_Synth(said, size, 0, POSITION_IS_CHARACTER, 0, TEXT_IS_UTF8, None, None)
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(self.rate)
            writer.writeframes(self._samples)
        return file.getvalue()

    def phonemes(self, text: str, voice: str) -> str:
        """How a text is said, in eSpeak's ASCII phonemes: ``f'oUni:m`` for "phoneme"."""
        self._use(voice)
        rest = ctypes.c_char_p(text.encode())
        clauses = []
        while rest.value:
            clauses.append(self._library.espeak_TextToPhonemes(ctypes.byref(rest), TEXT_IS_UTF8, 0).decode())
        return " ".join(clauses)

    def _use(self, voice: str) -> None:
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SystemExit(f"eSpeak NG has no voice {voice!r}")

    def _collect(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: int) -> int:
        if samples and count > 0:
            self._samples += ctypes.string_at(samples, 2 * count)
        return 0

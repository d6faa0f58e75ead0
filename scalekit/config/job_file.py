"""Reads a job file, and remembers the line of each key for what is wrong with its value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from scalekit.config.settings import Job
from scalekit.errors import ScaleKitError
from scalekit.utils.yaml_text import lines_of, read_mapping


@final
class JobFile:
    """A job file.

    Args:
        path: of the file.

    Attributes:
        settings: by name, not yet checked.

    Raises:
        ConfigError: there is no such file, or it holds no mapping.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self.settings, text = read_mapping(path, "job", "a mapping of settings")
        self._lines = lines_of(text)

    def job(self, flags: Mapping[str, Any] | None = None) -> Job:
        """The job that it describes.

        Args:
            flags: settings that count in place of the file's.

        Raises:
            ConfigError: it describes none; the message names file and line.
        """
        flags = flags or {}
        with self.located(except_for=flags):
            return Job.from_mapping({**self.settings, **flags})

    @contextmanager
    def located(self, except_for: Mapping[str, Any] = {}) -> Iterator[None]:
        """Adds file and line to an error that is about one of the file's keys.

        Args:
            except_for: settings that are not the file's.
        """
        try:
            yield
        except ScaleKitError as error:
            name = error.setting
            if name not in self._lines or name in except_for:
                raise
            raise error.at(f"{self._path}, line {self._lines[name]}") from None

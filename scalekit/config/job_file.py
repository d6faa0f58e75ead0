"""Reads a job file, and remembers the line of each key for what is wrong with its value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from scalekit.config.settings import Job
from scalekit.errors import ConfigError, ScaleKitError, shown
from scalekit.utils.yaml_text import lines_of, parse_yaml


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
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot read the job {path}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"cannot read the job {shown(str(path))}: {error}") from error
        block = parse_yaml(text, str(path))
        if not isinstance(block, dict):
            raise ConfigError(f"{path} holds no job: it must be a mapping of settings")
        self.settings: dict[str, Any] = block
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

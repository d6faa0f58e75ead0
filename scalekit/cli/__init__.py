"""The command line: thin, and quick to answer, because nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from scalekit.cli import commands
from scalekit.cli.flags import own_words
from scalekit.cli.parser import build_parser
from scalekit.errors import PreemptedError, ScaleKitError

_ERROR_CODE = 2
_OTHER_RANKS_WAIT_SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; ScaleKit's own errors become one line and exit code 2."""
    try:
        words = list(sys.argv[1:] if arguments is None else arguments)
        own, rest = own_words(words)
        parser = build_parser(own)
        parsed, unknown = parser.parse_known_args(own)
        run = getattr(commands, parsed.command.replace("-", "_"))
        if unknown and parsed.command not in ("plan", "inspect"):
            parser.parse_args(own)
        return int(run(parsed, rest or unknown))
    except PreemptedError as error:
        return error.code
    except ScaleKitError as error:
        return _report(error)


def _report(error: ScaleKitError) -> int:
    """Prints it once: torchrun ends a job when its first process ends, so another rank speaks only where rank 0 did not."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(_OTHER_RANKS_WAIT_SECONDS)
    where = "" if rank == "0" else f"rank {rank}: "
    print(f"{where}{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return _ERROR_CODE

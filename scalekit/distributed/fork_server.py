"""A process that has imported what a job needs, and forks the job's processes from there.

Importing torch and Lightning takes seconds, which each process would pay again, at each restart too. The server pays them once.
A client connects to it for each process that it wants, and keeps the connection: over it, it hears which process that is and
how it ended. When the client is gone, however it went, its process is killed.

`multiprocessing` has a fork server too. Its processes get neither the client's environment nor its directory, and it dies of
the signals that schedulers send to all of a job's processes, which this one is out of reach of.

The server computes nothing and touches no GPU: what is forked could not use either.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import final

from scalekit.distributed.program import Program

ADDRESS = "SCALEKIT_FORK_SERVER"
"""The variable that names a server which stands already; `connected` takes that one."""

BLOCKED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
LENGTH = struct.Struct("!I")
_MOST_WAITING = 128


@final
class ForkServer:
    """A client's end.

    Args:
        address: of the server's socket, in the system's abstract namespace.
        alive: a pipe that ends with this process, and the server with it; None where the server is somebody else's.
    """

    def __init__(self, address: str, alive: int | None = None) -> None:
        self.address = address
        self._alive = alive

    @classmethod
    def start(cls, modules: Sequence[str]) -> ForkServer:
        """Starts a server, which imports while the caller continues; those that cannot be imported are left out."""
        address = f"scalekit-{os.getpid()}-{secrets.token_hex(8)}"
        ends, alive = os.pipe()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"\0{address}")
            listener.listen(_MOST_WAITING)
            handed = (listener.fileno(), ends)
            # Its parent's flags, such as -W, and its parent's path, which may hold a checkout that is not installed.
            flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
            start = "from scalekit.distributed.fork_server_process import main; main()"
            program = f"import sys; sys.path[:] = {sys.path!r}; {start}"
            before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
            try:
                subprocess.Popen(
                    [sys.executable, *flags, "-c", program, *map(str, handed), *modules],
                    stdin=subprocess.DEVNULL,
                    pass_fds=handed,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(ends)
        return cls(address, alive)

    @classmethod
    def connected(cls, modules: Sequence[str]) -> ForkServer:
        """The server that stands already, as the environment says; otherwise a new one."""
        address = os.environ.get(ADDRESS)
        if address:
            with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
                connection.connect(f"\0{address}")
                return cls(address)
        return cls.start(modules)

    def fork(self, program: Program, output: int | None = None) -> ForkedProcess:
        """Starts a process.

        Args:
            program: to run in it.
            output: a descriptor for what it prints; where this process prints by default.

        Raises:
            OSError: the server is gone.
        """
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(f"\0{self.address}")
            message = json.dumps(asdict(program)).encode()
            descriptors = (1, 2) if output is None else (output, output)
            socket.send_fds(connection, [LENGTH.pack(len(message))], descriptors)
            connection.sendall(message)
            return ForkedProcess(connection)
        except BaseException:
            connection.close()
            raise

    def stop(self) -> None:
        """Ends a server that this process has started, and the processes that live of it."""
        if self._alive is not None:
            os.close(self._alive)
            self._alive = None


@final
class ForkedProcess:
    """A process that a server has forked.

    Attributes:
        pid: its number.
        returncode: how it ended, as `subprocess` has it: negative for a signal; None while it lives.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._said = connection, b""
        self.returncode: int | None = None
        line = self._line(wait=True)
        if line is None:
            raise ConnectionError("the fork server is gone")
        self.pid = int(line)

    def poll(self) -> int | None:
        """How it ended; None while it lives."""
        return self._ended(wait=False)

    def wait(self, timeout_seconds: float | None = None) -> int | None:
        """Until it has ended, or for so long."""
        if timeout_seconds is None:
            return self._ended(wait=True)
        end = time.monotonic() + timeout_seconds
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Where it still lives."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _ended(self, wait: bool) -> int | None:
        if self.returncode is None:
            try:
                line = self._line(wait)
            except BlockingIOError:
                return None
            # A server that is gone takes its processes with it.
            self.returncode = -signal.SIGKILL if line is None else int(line)
            self._connection.close()
        return self.returncode

    def _line(self, wait: bool) -> bytes | None:
        """What the server says next; None where it is gone."""
        self._connection.setblocking(wait)
        while b"\n" not in self._said:
            try:
                got = self._connection.recv(64)
            except ConnectionError:
                return None
            if not got:
                return None
            self._said += got
        line, _, self._said = self._said.partition(b"\n")
        return line

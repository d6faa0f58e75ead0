"""A process that has imported what a job needs, and forks the job's processes from there.

Importing torch and Lightning takes seconds, which each process would pay again, at each restart too. The server pays them once.
A client connects to it for each process that it wants, and keeps the connection: over it, it hears which process that is and
how it ended. When the client is gone, however it went, its process is killed.

`multiprocessing` has a fork server too. Its processes get neither the client's environment nor its directory, and it dies of
the signals that schedulers send to all of a job's processes, which this one is out of reach of.

The server computes nothing and touches no GPU: what is forked could not use either.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import secrets
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, final

from scalekit.distributed.program import Program
from scalekit.distributed.swift_exit import SwiftExit

ADDRESS = "SCALEKIT_FORK_SERVER"
"""The variable that names a server which stands already; `connected` takes that one."""

_BLOCKED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_LENGTH = struct.Struct("!I")
_PEER = struct.Struct("3i")  # pid, uid and gid: `struct ucred`
_SET_DEATH_SIGNAL, _SET_NAME = 1, 15  # prctl(2)
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
            program = (
                f"import sys; sys.path[:] = {sys.path!r}; from scalekit.distributed.fork_server import main; main()"
            )
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
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
            socket.send_fds(connection, [_LENGTH.pack(len(message))], descriptors)
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


# -- the server -------------------------------------------------------------------------------------------------------


def main() -> None:
    """Serves: ``python -c ... LISTENER ALIVE MODULE ...``. A process that is forked returns from here to its end."""
    listener, alive, *modules = sys.argv[1:]
    end = SwiftExit()
    with _silence():
        for name in modules:
            with suppress(Exception):  # the job itself will meet it, and say so
                importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is shared stays shared: a collection would write to all of it
    program = _Server(socket.socket(fileno=int(listener)), int(alive)).serve()
    end.after(program.run if program is not None else lambda: None)


@contextmanager
def _silence() -> Iterator[None]:
    """What libraries print while they are imported is for nobody, and must not wait in a buffer that each fork would print."""
    kept = os.dup(1), os.dup(2)
    with open(os.devnull, "w") as nothing:
        for place in (1, 2):
            os.dup2(nothing.fileno(), place)
    yield
    sys.stdout.flush()
    sys.stderr.flush()
    for descriptor, place in zip(kept, (1, 2), strict=True):
        os.dup2(descriptor, place)
        os.close(descriptor)


@final
class _Server:
    def __init__(self, listener: socket.socket, alive: int) -> None:
        self._listener, self._alive = listener, alive
        self._clients: dict[int, socket.socket] = {}
        self._ended, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(self._ended, False)
        self._before = signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        self._selector = selectors.DefaultSelector()
        for each in (listener, alive, self._ended):
            self._selector.register(each, selectors.EVENT_READ)

    def serve(self) -> Program | None:
        """Until whoever started it is gone.

        Returns:
            In a process that it has forked, the program to run; None at the server's own end.
        """
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == self._alive:
                    for pid in self._clients:
                        os.kill(pid, signal.SIGKILL)
                    return None
                if key.fileobj is self._listener:
                    program = self._accept()
                    if program is not None:
                        return program
                elif key.fileobj == self._ended:
                    self._reap()
                elif key.data in self._clients:
                    os.kill(key.data, signal.SIGKILL)  # its client is gone; it is reaped like the others
                    self._selector.unregister(key.fileobj)

    def _accept(self) -> Program | None:
        connection, _ = self._listener.accept()
        descriptors: list[int] = []
        try:
            descriptors, program = _received(connection)
        except (OSError, ValueError, TypeError):
            connection.close()  # somebody who only looked whether there is a server
            return None
        server = os.getpid()
        pid = os.fork()
        if not pid:
            self._leave(connection)
            _become(program, descriptors, server)
            return program
        for each in descriptors:
            os.close(each)
        self._clients[pid] = connection
        _tell(connection, pid)
        self._selector.register(connection, selectors.EVENT_READ, data=pid)
        return None

    def _leave(self, connection: socket.socket) -> None:
        """In the forked process: everything of the server's is let go."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, self._before)
        self._selector.close()
        for each in (connection, self._listener, *self._clients.values()):
            each.close()
        for descriptor in (self._alive, self._ended, self._wakeup):
            os.close(descriptor)

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._ended, 4096):
                pass
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                connection = self._clients.pop(pid, None)
                if connection is not None:
                    _tell(connection, os.waitstatus_to_exitcode(status))
                    with suppress(KeyError):
                        self._selector.unregister(connection)
                    connection.close()


def _received(connection: socket.socket) -> tuple[list[int], Program]:
    """What a client wants.

    Raises:
        OSError, ValueError: it has gone, or is another user's.
    """
    _, user, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    if user != os.getuid():
        raise ValueError("another user's")
    header, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, 2)
    if len(header) < _LENGTH.size:
        raise ConnectionError
    (left,) = _LENGTH.unpack(header)
    message = b""
    while len(message) < left:
        got = connection.recv(left - len(message))
        if not got:
            raise ConnectionError
        message += got
    return descriptors, Program(**json.loads(message))


def _tell(connection: socket.socket, number: int) -> None:
    with suppress(OSError):  # a client that has gone
        connection.sendall(b"%d\n" % number)


def _become(program: Program, descriptors: list[int], server: int) -> None:
    """Makes a forked process the program's: its output, environment, directory, and a name that `ps` and `top` show."""
    _control(_SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != server:
        os._exit(1)
    if program.own_session:
        os.setsid()
    for descriptor, place in zip(descriptors, (1, 2), strict=True):
        os.dup2(descriptor, place)
        os.close(descriptor)
    program.enter()
    _control(_SET_NAME, ctypes.c_char_p(program.name.encode()[:15]))
    for each in _BLOCKED:
        signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)


def _control(what: int, value: Any) -> None:
    ctypes.CDLL(None).prctl(what, value, 0, 0, 0)

"""The fork server's own process: it imports, and forks when it is asked to."""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, final

from scalekit.distributed.fork_server import BLOCKED, LENGTH
from scalekit.distributed.program import Program
from scalekit.distributed.quick_exit import SwiftExit

_PEER = struct.Struct("3i")  # pid, uid and gid: `struct ucred`


_SET_DEATH_SIGNAL, _SET_NAME = 1, 15  # prctl(2)


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
    header, descriptors, _, _ = socket.recv_fds(connection, LENGTH.size, 2)
    if len(header) < LENGTH.size:
        raise ConnectionError
    (left,) = LENGTH.unpack(header)
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
    for each in BLOCKED:
        signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)


def _control(what: int, value: Any) -> None:
    ctypes.CDLL(None).prctl(what, value, 0, 0, 0)

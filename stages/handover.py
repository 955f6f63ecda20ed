"""A stage's command hands itself over to the warm server, where there is one.

`python -m stages.distill p1` spends seconds on imports before it works. Under `stages.repro` the
server (stages/warm.py) has imported everything once: this process sends it its arguments,
environment, working directory and standard streams, waits for the child that the server forks, and
ends as that child ends. Everywhere else nothing changes.

A connection carries a request (its size as eight bytes, then JSON; the streams as file
descriptors), then `STARTED` from the server, then the status of the child that has ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from dataclasses import asdict, dataclass, field

ADDRESS = "STAGES_WARM_SERVER"
"""The environment variable with the path of the server's socket."""
STARTED = b"+"

_SIZE = struct.Struct("!Q")
_STATUS = struct.Struct("!i")


@dataclass(frozen=True)
class Request:
    """What to run, and how: `python -m module arguments` there, with these standard streams."""

    module: str
    arguments: list[str]
    folder: str
    environment: dict[str, str]
    streams: tuple[int, ...] = field(default=(), compare=False)


def hand_over() -> None:
    """Have the server run this command and end as it ends; return where no server is asked for.

    Processes of one launch (`RANK`) stay with their launcher. A server that has gone before it
    could start the command is told of, and the command runs here.
    """
    address = os.environ.get(ADDRESS)
    command = sys.orig_argv[1:]
    if address is None or "RANK" in os.environ or command[:1] != ["-m"]:
        return
    request = Request(command[1], command[2:], os.getcwd(), dict(os.environ))
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
            _send(connection, request)
            started = connection.recv(len(STARTED)) == STARTED
        except OSError:
            started = False
        if not started:
            print("the warm server has gone: this stage imports by itself", file=sys.stderr)
            return
        status = received(connection, _STATUS.size)
    if not status:
        print("error: the warm server has ended, and its stages with it", file=sys.stderr)
        os._exit(1)
    _end(*_STATUS.unpack(status))


def _end(status: int) -> None:
    """End with this exit code, or by this signal if it is negative."""
    if status < 0:
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _send(connection: socket.socket, request: Request) -> None:
    content = asdict(request)
    del content["streams"]
    # ASCII, and what is no UTF-8 in the environment as lone surrogates.
    text = json.dumps(content).encode("ascii")
    socket.send_fds(connection, [_SIZE.pack(len(text))], [0, 1, 2])
    connection.sendall(text)


def receive(connection: socket.socket) -> Request:
    """The request that a command sends, with its streams as open file descriptors.

    Raises `ConnectionError` if it ends before it has sent all.
    """
    head, streams, _, _ = socket.recv_fds(connection, _SIZE.size, 3)
    head += received(connection, _SIZE.size - len(head))
    if len(head) == _SIZE.size:
        (size,) = _SIZE.unpack(head)
        text = received(connection, size)
        if len(text) == size and len(streams) == 3:
            return Request(**json.loads(text), streams=tuple(streams))
    for stream in streams:
        os.close(stream)
    raise ConnectionError("a command has ended while it handed itself over")


def received(connection: socket.socket, size: int) -> bytes:
    """`size` bytes, or fewer if the other end closes before."""
    parts = []
    while size and (part := connection.recv(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def report(connection: socket.socket, status: int) -> None:
    """Tell the command how its child has ended: an exit code, or a signal's number below 0."""
    connection.sendall(_STATUS.pack(status))

"""The worker's side of `workers`: runs what it is sent, call after call, until its standard input ends."""

from __future__ import annotations

import os
import pickle
import queue
import struct
import threading
from typing import IO, Any

_LENGTH = struct.Struct(">Q")


def send(stream: IO[bytes], message: bytes) -> None:
    """Write a message with its length in front."""
    stream.write(_LENGTH.pack(len(message)) + message)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes:
    """Read a message. Raises EOFError where the stream ends before it does."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    message = stream.read(_LENGTH.unpack(head)[0])
    if len(message) < _LENGTH.unpack(head)[0]:
        raise EOFError
    return message


def main() -> None:
    """Serve a parent: the first message is a dict of arguments that every call gets, the others are the calls.

    Every message is answered with (True, result) or (False, what was raised).
    """
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a stray print belongs on stderr: it would otherwise cut into a reply
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, inbox), daemon=True).start()
    shared: dict[str, Any] | None = None
    while True:
        try:
            received = pickle.loads(inbox.get())
            if shared is None:
                shared, answer = received, None
            else:
                answer = received(**shared)
            reply = pickle.dumps((True, answer))
        except Exception as error:
            reply = pickle.dumps((False, f"{type(error).__name__}: {error}"))
        send(replies, reply)


def _listen(requests: IO[bytes], inbox: queue.SimpleQueue[bytes]) -> None:
    """Read on while a call runs: when the parent dies or closes the stream, no one waits for the call's result."""
    while True:
        try:
            inbox.put(receive(requests))
        except (EOFError, OSError):
            os._exit(0)

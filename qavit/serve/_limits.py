"""How much a server takes on."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """Bounds of a server; times are in seconds."""

    upload_bytes: int = 32 << 20
    """Of a picture's file."""
    pixels: int = 50_000_000
    """Of a picture, told by its file's head before it is decoded."""
    pictures: int = 8
    """That are kept."""
    picture_bytes: int = 512 << 20
    """Of all kept pictures together; the newest is kept in any case."""
    ask_bytes: int = 64 << 10
    """Of what is asked."""
    head_bytes: int = 16 << 10
    """Of a request's line and headers."""
    connections: int = 96
    """At once; what comes on more is told to come again, and twice as many are the most that stay open."""
    waiting: int = 24
    """Questions that wait for the one that is computed; more are told to come again."""
    uploads: int = 2
    """Pictures that are received at once; others wait, as many as questions do."""
    head_seconds: float = 10.0
    """From a connection, or from the last answer on it, until the next request's head has come whole."""
    body_seconds: float = 30.0
    """For a request's body."""
    send_seconds: float = 15.0
    """Until a slow reader has taken a part of an answer."""
    idle_seconds: int = 60
    """That a connection on which nothing is asked stays open."""

"""Lets calls of kernels pass in any number, and a change of kernels only while none is inside.

The dispatcher is not made for a kernel that is replaced while another thread looks it up or runs in it: that thread
crashes. Registering happens when a backend is forced, which is rare, so it is that which waits.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

_me = threading.get_ident
# Each of these operations on a list is atomic, and every thread sees them in one order.
_inside: list[int] = []
_closed: list[int] = []
_changing = threading.RLock()


def enter() -> None:
    """Before a call; waits while a change is under way. `leave` has to follow, whatever happens in here."""
    _inside.append(_me())
    if _closed:
        _wait()


def leave() -> None:
    """After a call, also one that was interrupted before it was in."""
    me = _me()
    if me in _inside:
        _inside.remove(me)


def _wait() -> None:
    me = _me()
    # A call from within a call must not wait: the change waits for the outer one.
    while _closed and me not in _closed and _inside.count(me) == 1:
        _inside.remove(me)
        try:
            time.sleep(1e-4)
        finally:
            _inside.append(me)


@contextlib.contextmanager
def change() -> Iterator[None]:
    """Everybody else stays outside while this is open."""
    me = _me()
    with _changing:
        _closed.append(me)
        try:
            while any(other != me for other in tuple(_inside)):
                time.sleep(1e-5)
            yield
        finally:
            _closed.pop()


def _after_fork() -> None:
    """The child has one thread; what the others were doing, they do not do here."""
    global _changing
    _inside[:] = [thread for thread in _inside if thread == _me()]
    _closed[:] = [thread for thread in _closed if thread == _me()]
    if not _closed:
        _changing = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

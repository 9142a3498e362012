"""A stack for libraries that call themselves once for each level of what they read.

One written in Rust that runs out of stack ends the whole process, and no exception tells of it.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

STACK = 512 << 20
"""Addresses, of which only what is touched becomes memory. The deepest grammar of 256 KiB touched less than 128 MiB."""
_one_size_at_a_time = threading.Lock()


def on_deep_stack(work: Callable[[], T]) -> T:
    """Do work in a thread of its own and wait for it; raises what it raises."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    with _one_size_at_a_time:  # it is the interpreter's, for all threads that are made
        usual = threading.stack_size(STACK)
        try:
            threading.Thread(target=run, name="deep-stack").start()
        finally:
            threading.stack_size(usual)
    return done.result()

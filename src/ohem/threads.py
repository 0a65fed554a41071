"""Threads of the libraries below."""

from collections.abc import Iterator
from contextlib import contextmanager

import cv2


@contextmanager
def opencv_in_one_thread() -> Iterator[None]:
    """Keep OpenCV to one thread, where every worker has an image of its own, and before processes fork.

    OpenCV's threads do not survive a fork: a child that touched the pool, which only its parent has, would wait for
    ever.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)

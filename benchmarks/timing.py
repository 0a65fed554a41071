"""Works that take turns, counted operations, and the peak memory of a process of its own."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from torch.utils.flop_counter import FlopCounterMode

Work = Callable[[], object]
Seconds = dict[str, list[float]]


def turns(works: Mapping[str, Work], repeats: int) -> Seconds:
    """Seconds of each work, ``repeats`` times, taking turns; a first time for each is not counted."""
    seconds: Seconds = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Seconds, name: str, base: str) -> float:
    """Median of the ratios of the turns."""
    return median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def medians(seconds: Seconds) -> dict[str, float]:
    return {name: median(values) for name, values in seconds.items()}


def operations(work: Work) -> float:
    """Of convolutions and matrix products, forward and backward; a multiply-add counts as two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def last_number(script: str, arguments: Sequence[str]) -> float:
    """What another process prints last."""
    command = [sys.executable, script, *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def line(name: str, values: Mapping[str, float]) -> str:
    return f"{name:28}" + ", ".join(f"{what} {value:.3g}" for what, value in values.items())

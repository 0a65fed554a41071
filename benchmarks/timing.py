"""Works that take turns, counted operations, and the peak memory of a process of its own."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from torch.utils.flop_counter import FlopCounterMode

Work = Callable[[], object]
Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class Turns:
    """Seconds of works that took turns.

    Attributes:
        clock: by the clock.
        cpu: of all threads of this process: what other processes take away does not count.
    """

    clock: Seconds
    cpu: Seconds

    def seconds(self) -> dict[str, float]:
        """Of each work, the median by the clock."""
        return {name: median(values) for name, values in self.clock.items()}

    def ratios(self, name: str, base: str) -> dict[str, float]:
        """Medians of the ratios of the turns."""
        return {"ratio": _ratio(self.clock, name, base), "CPU ratio": _ratio(self.cpu, name, base)}


def turns(works: Mapping[str, Work], repeats: int) -> Turns:
    """Each work ``repeats`` times, taking turns; a first time for each is not counted."""
    clock: Seconds = {name: [] for name in works}
    cpu: Seconds = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            work()
            if repeat:
                cpu[name].append(time.process_time() - start_cpu)
                clock[name].append(time.perf_counter() - start)
    return Turns(clock, cpu)


def _ratio(seconds: Seconds, name: str, base: str) -> float:
    return median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


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

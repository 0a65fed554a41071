"""What processor this is."""

import platform
from functools import cache
from pathlib import Path


@cache
def processor_name() -> str:
    """Its name where Linux tells it, else what Python knows, at least its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

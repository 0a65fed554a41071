"""How much of one core `ohem watch` takes while a training goes on: the most by which it can slow it.

    python benchmarks/watching.py

A log of 4,000 records grows by one a second, as one of a training of 20 steps a second and one of an hour would; ``ohem
watch`` follows it on a terminal of its own. Its processor seconds are measured, not the time on the clock, so that other
work on the machine does not matter: of a long look less those of a short one, which is what it takes to start.
"""

import argparse
import json
import os
import pty
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from ohem.recipes.recipe import dump_recipe, load_recipe

RECORDS = 4000


def record(iteration: int) -> str:
    """A record of a window of the log; its size is that of a real one."""
    window = {"kind": "train", "iteration": iteration, "lr": 0.001, "loss_selected_rois": 0.8, "loss_all_rois": 0.2}
    window |= {"foreground_share": 0.2, "seconds": {"data": 0.01, "ranking": 0.1, "training": 0.2, "measuring": 0.0}}
    window |= {"mined": {str(i): [[100, 200, 300, 400]] * 4 for i in range(100)}}
    return json.dumps(window) + "\n"


def make_run(folder: Path) -> Path:
    """A run in its midst."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump_recipe(load_recipe("lite0", [f"iterations={RECORDS * 40}"])))
    (folder / "run.json").write_text(json.dumps({"format": 1}))
    (folder / "log.jsonl").write_text("".join(record(20 * (i + 1)) for i in range(RECORDS)))
    return folder


def watched(run: Path, seconds: float) -> tuple[float, int]:
    """Processor seconds of ``ohem watch`` when it is stopped after so long, and the largest memory in MB."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "ohem", "watch", str(run)], stdout=theirs, stdin=theirs)
    os.close(theirs)
    shown = bytearray()
    threading.Thread(target=read_all, args=(ours, shown), daemon=True).start()
    end = time.monotonic() + seconds
    iteration = 20 * RECORDS
    while time.monotonic() < end:
        time.sleep(1)
        iteration += 20
        with (run / "log.jsonl").open("a") as log:
            log.write(record(iteration))
    process.terminate()
    _, _, used = os.wait4(process.pid, 0)
    if b"iteration" not in shown:
        sys.exit(f"ohem watch showed nothing: {shown.decode(errors='replace')}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss // 1024


def read_all(terminal: int, shown: bytearray) -> None:
    """What a terminal shows, until it is closed."""
    try:
        while part := os.read(terminal, 2**16):
            shown += part
    except OSError:  # closed
        pass


def main() -> None:
    """Two looks, and their difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    seconds = parser.parse_args().seconds
    short = 15
    with tempfile.TemporaryDirectory() as name:
        run = make_run(Path(name) / "run")
        (begin, _), (whole, memory) = watched(run, short), watched(run, short + seconds)
    share = (whole - begin) / seconds
    print(f"starting: {begin:.1f} s of a core; then {100 * share:.2f} % of one core; {memory} MB")


if __name__ == "__main__":
    main()

"""Kill training, proposal making, evaluation and reproduction at random moments, and see that nothing is lost by it.

    python benchmarks/faults.py [--kills 50] [--seed 0] [--works train,propose,evaluate,reproduce]

Each work is done once undisturbed. Then it is done again and again: half the time SIGKILL comes after a random time,
half the time at a random one of the moments in which a file is opened for writing, flushed or renamed. The same command
(for a training, ``--resume``) must go on from there and end in the same bytes. Then the other faults: a full disk, a
folder where nothing may be written, an image deleted or changed on the way, a worker killed; each must stop the command
with exit code 2 and one line, and after it has been mended the work must end in the same bytes too.

Prints a line for each work and fault, and exits with 1 where one was lost. Full disks need root and Linux (a small tmpfs is
mounted); without, they are simulated by a limit on the size of files.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

RECIPE = """
base: lite0
iterations: 10
images_per_step: 2
log_every: 2
checkpoint_every: 2
snapshot_every: 5
evaluation: {every: 5}
detector:
  image: {shortest: 72, longest: 96}
  backbone: {weights: none, strides: [16], scales: [6.0]}
  head: {pool_size: 3, channels: 8, fc: [16], dropout: 0.3}
"""
TRAIN = ("train", "r.yaml", "--data", "data@trainval", "--val", "data@test", "--run", "run", "--workers", "1")
RESUME = ("train", "--resume", "run", "--workers", "1")
MOMENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "sqlite3.connect")
"""Audit events of Python in which files come and go; flushing to disk is one more."""


UNEQUAL = ("job_seconds", "seconds_a_step", "date")
"""Of a study's results: what two undisturbed studies do not have in common either."""


@dataclass(frozen=True)
class Work:
    """Something that may be killed.

    Attributes:
        prepare: what must be there before, in the current folder.
        step: does it, or goes on with it.
        result: what must be the same at the end.
    """

    prepare: Callable[[], None]
    step: Callable[[], None]
    result: Callable[[], dict[str, bytes]]


# ------------------------------------------------------------------------------------------------------------- the works


def command(*arguments: str) -> None:
    sys.argv = ["ohem", *arguments]
    cli.main()


def train() -> None:
    command(*(RESUME if Path("run/run.json").exists() else TRAIN))


def trained() -> dict[str, bytes]:
    log = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in record.items() if k not in ("seconds", "peak_memory_mb")} for record in log]
    files = [*Path("run").glob("*.safetensors"), *Path("run/snapshots").iterdir()]
    return {"log": repr(kept).encode(), **{path.name: path.read_bytes() for path in files}}


def propose() -> None:
    command("propose", "data@trainval", "--out", "p.sqlite", "--workers", "2")


def proposed() -> dict[str, bytes]:
    cache = ProposalCache(Path("p.sqlite"))
    return {str(image): cache[image].tobytes() for image in cache}


def evaluate() -> None:
    command("evaluate", "run", "--data", "data@test", "--workers", "0")


def evaluated() -> dict[str, bytes]:
    """Of every evaluation that looks whole: a killed one must not, unless it was."""
    done = [path.parent for path in Path("run").glob("evaluation*/metrics.json")]
    each = [{path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} for folder in done]
    assert each
    return each[0] if all(one == each[0] for one in each) else {"evaluations": repr(done).encode()}


def reproduce() -> None:
    opened = study.open_study("table4", "mini", Path("out"), data="data@trainval", test="data@test", recipe="r.yaml")
    tables = {"table4": replace(opened.tables["table4"], rows=opened.tables["table4"].rows[:1])}
    short = replace(opened, tables=tables, rates=(0.001,))
    study.reproduce(Workshop(short, Path("out"), SILENT, workers=0), "table4", 1, study.Sharing())


def reproduced() -> dict[str, bytes]:
    numbers = {}
    for path in Path("out/results").glob("*.json"):
        result = json.loads(path.read_text())
        numbers[path.name] = repr({k: v for k, v in result.items() if k not in UNEQUAL}).encode()
    weights = {path.parent.name: path.read_bytes() for path in Path("out/runs").glob("*/weights.safetensors")}
    return numbers | weights | {"page": str(Path("out/table4.html").exists()).encode()}


def data_only() -> None:
    make_builtin(Path("data"), train_images=6, test_images=4)
    Path("r.yaml").write_text(RECIPE)


def data_and_run() -> None:
    data_only()
    train()


WORKS = {
    "train": Work(data_only, train, trained),
    "propose": Work(data_only, propose, proposed),
    "evaluate": Work(data_and_run, evaluate, evaluated),
    "reproduce": Work(data_only, reproduce, reproduced),
}

# -------------------------------------------------------------------------------------------------------------- children


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code (minus the signal that killed it), seconds, what it said on stderr, and how many
    moments it saw in which it could have been killed."""

    code: int
    seconds: float
    said: str
    moments: int


def run_child(
    work: Callable[[], None],
    *,
    at_moment: int | None = None,
    after: float | None = None,
    meddle: Callable[[int], None] | None = None,
    before: Callable[[], None] | None = None,
) -> Ended:
    """Do something in a forked process, which is killed at a moment or after some seconds, or meddled with."""
    with tempfile.TemporaryDirectory() as aside:
        notes = Path(aside)
        start = time.monotonic()
        child = os.fork()
        if not child:
            _be_child(work, notes, at_moment, before)
        if after is not None:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
        if meddle is not None:
            meddle(child)
        _, status = os.waitpid(child, 0)
        moments = notes / "moments"
        return Ended(
            os.waitstatus_to_exitcode(status),
            time.monotonic() - start,
            (notes / "err").read_text() if (notes / "err").exists() else "",
            len(moments.read_bytes()) if moments.exists() else 0,
        )


def _be_child(work: Callable[[], None], notes: Path, at_moment: int | None, before: Callable[[], None] | None) -> None:
    code = 1
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(notes / name, os.O_CREAT | os.O_WRONLY), number)
        seen = os.open(notes / "moments", os.O_CREAT | os.O_WRONLY)
        _count_moments(seen, at_moment)
        if before is not None:
            before()
        try:
            work()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _count_moments(seen: int, at_moment: int | None) -> None:
    """One byte in ``seen`` for each moment; at the wanted one, the process is killed as the kernel would."""
    count, me = 0, os.getpid()

    def moment() -> None:
        nonlocal count
        if os.getpid() != me:  # workers that read images
            return
        count += 1
        os.write(seen, b".")
        if count == at_moment:
            os.kill(me, signal.SIGKILL)

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event in MOMENTS and (event != "open" or _writes(arguments)):
            moment()

    def fsync(descriptor: int, flush: Callable[[int], None] = os.fsync) -> None:
        moment()
        flush(descriptor)

    sys.addaudithook(audit)
    os.fsync = fsync


def _writes(arguments: tuple[object, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR)) and "/dev/" not in str(arguments[0])


@contextmanager
def prepared(work: Work, reference: Path | None = None) -> Iterator[None]:
    """A new current folder in which a work can begin; a copy where one was made before."""
    back = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "place"
        if reference is None:
            folder.mkdir()
            os.chdir(folder)
            ended = run_child(work.prepare)
            if ended.code:
                raise SystemExit(f"preparing: exit code {ended.code}: {ended.said}")
        else:
            shutil.copytree(reference, folder)
            os.chdir(folder)
        os.environ["OHEM_CACHE"] = str(folder / "cache")
        try:
            yield
        finally:
            os.chdir(back)


def same(a: dict[str, bytes], b: dict[str, bytes]) -> str:
    """Empty, or what differs."""
    return ", ".join(sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key)))


# ---------------------------------------------------------------------------------------------------------------- faults


@dataclass
class Tally:
    """What became of the kills of one work."""

    kills: int = 0
    at_files: int = 0
    resumed: int = 0
    lost: tuple[str, ...] = ()

    def __str__(self) -> str:
        lost = f"; LOST: {'; '.join(self.lost)}" if self.lost else ""
        return f"{self.kills} kills, {self.at_files} of them at files: {self.resumed} ended in the same bytes{lost}"


def kill_at_random(work: Work, kills: int, chance: random.Random) -> Tally:
    """Kill a work again and again until it has been killed so often; each time it ends, it must have the same result."""
    tally = Tally()
    with prepared(work):
        start = Path.cwd()
        with prepared(work, start):
            whole = run_child(work.step)
            assert whole.code == 0, whole.said
            wanted = work.result()
        while tally.kills < kills:
            with prepared(work, start):
                tally.lost += tuple(_until_done(work, kills, chance, whole, tally, wanted))
    return tally


def _until_done(
    work: Work, kills: int, chance: random.Random, whole: Ended, tally: Tally, wanted: dict[str, bytes]
) -> Iterator[str]:
    """Begin a work and go on with it, killed up to three times, and yield what is wrong with its end."""
    killed = 0
    for _ in range(chance.randint(1, 3)):
        if tally.kills == kills:
            break
        at_files = chance.random() < 0.5
        moment = chance.randint(1, whole.moments) if at_files else None
        after = None if at_files else chance.uniform(0, whole.seconds)
        ended = run_child(work.step, at_moment=moment, after=after)
        if ended.code == -signal.SIGKILL:
            killed, tally.kills, tally.at_files = killed + 1, tally.kills + 1, tally.at_files + at_files
        elif ended.code:
            yield f"exit code {ended.code}: {ended.said.strip().splitlines()[-1:]}"
    last = run_child(work.step)
    if last.code:
        yield f"exit code {last.code}: {last.said.strip().splitlines()[-1:]}"
        return
    different = same(work.result(), wanted)
    if different:
        yield f"differs in {different}"
    else:
        tally.resumed += killed


def stops_and_goes_on(
    name: str,
    *,
    before: Callable[[], None] | None = None,
    meddle: Callable[[int], None] | None = None,
    mend: Callable[[], None] = lambda: None,
) -> str:
    """A training with a fault: exit code 2 and one line, and the same bytes once it is mended; or what was wrong."""
    work = WORKS["train"]
    with prepared(work):
        start = Path.cwd()
        with prepared(work, start):
            assert run_child(work.step).code == 0
            wanted = work.result()
        with prepared(work, start):
            ended = run_child(work.step, before=before, meddle=meddle)
            lines = ended.said.strip().splitlines()
            if ended.code != 2 or len(lines) != 1:
                return f"{name}: LOST: exit code {ended.code}, {len(lines)} lines: {lines[-1:]}"
            mend()
            again = run_child(work.step)
            different = same(work.result(), wanted) if again.code == 0 else f"exit code {again.code}: {again.said}"
            said = lines[0].replace(str(Path.cwd()), ".")
            return f"{name}: {f'LOST: {different}' if different else 'stopped, mended, the same bytes'} ({said})"


def wait_for(path: Path, seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < limit:
        time.sleep(0.002)


def first_image() -> Path:
    return min(Path("data/JPEGImages").iterdir())


def delete_image(_: int) -> None:
    wait_for(Path("run/checkpoints/last.pt"))
    for path in Path("data/JPEGImages").iterdir():
        path.rename(path.with_suffix(".away"))


def bring_back() -> None:
    for path in Path("data/JPEGImages").glob("*.away"):
        path.rename(path.with_suffix(".jpg"))


def change_images(_: int) -> None:
    wait_for(Path("run/checkpoints/last.pt"))
    for path in Path("data/JPEGImages").iterdir():
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def change_back() -> None:
    for path in Path("data/JPEGImages").iterdir():
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 1))


def kill_worker(child: int) -> None:
    wait_for(Path("run/checkpoints/last.pt"))
    for worker in psutil.Process(child).children():
        worker.kill()


def small_files() -> None:
    """No file of more than 200 kB: what a full disk does to the checkpoint."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))


def mounted(size: str, options: str = "rw") -> bool:
    """A small disk where the run is to be; whether that is possible here."""
    Path("run").mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},{options}", "none", "run"]
    return sys.platform == "linux" and subprocess.run(mount, capture_output=True, check=False).returncode == 0


def unmount() -> None:
    """Take the disk away, and keep what is on it."""
    shutil.copytree("run", "kept")
    subprocess.run(["umount", "run"], check=True)
    Path("run").rmdir()
    if any(Path("kept").iterdir()):
        Path("kept").rename("run")


def other_faults() -> Iterator[str]:
    yield stops_and_goes_on("files that may not grow", before=small_files)
    yield stops_and_goes_on("images deleted on the way", meddle=delete_image, mend=bring_back)
    yield stops_and_goes_on("images replaced on the way", meddle=change_images, mend=change_back)
    yield stops_and_goes_on("a worker killed", meddle=kill_worker)
    with prepared(WORKS["propose"]):
        possible = mounted("1m")
        if possible:
            subprocess.run(["umount", "run"], check=True)
    if not possible:
        yield "full disk, read-only folder: not run, since nothing may be mounted here"
        return
    yield stops_and_goes_on("a read-only folder", before=lambda: mounted("1m", "ro") and None, mend=unmount)
    yield stops_and_goes_on("a full disk", before=lambda: mounted("3m") and None, mend=unmount)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="in all, spread over the works")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--works", default=",".join(WORKS), help="with commas between")
    parser.add_argument("--kills-only", action="store_true", help="leave the other faults out")
    options = parser.parse_args(arguments)
    names = [name for name in options.works.split(",") if name]
    lost = 0
    for i, name in enumerate(names):
        kills = options.kills // len(names) + (i < options.kills % len(names))
        start = time.monotonic()
        tally = kill_at_random(WORKS[name], kills, random.Random(options.seed * len(WORKS) + i))
        print(f"{name}: {tally} ({time.monotonic() - start:.0f} s)", flush=True)
        lost += len(tally.lost)
    for line in () if options.kills_only else other_faults():
        print(line, flush=True)
        lost += "LOST" in line
    return int(lost > 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Loaded once, here: children are forks, and begin at once. No operator is run before a fork.
    import psutil

    from ohem import cli
    from ohem.data.builtin import make_builtin
    from ohem.opening import SILENT
    from ohem.proposals.cache import ProposalCache
    from ohem.studies import reproduce as study
    from ohem.studies.workshop import Workshop

    sys.exit(main())

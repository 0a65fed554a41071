"""Several processes train what one would have, and survive the death of one of them.

The folder is named by ``--folder`` here: torchrun takes ``--run`` for an abbreviation of an option of its own.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import HashStore

from ohem.errors import OhemError
from ohem.training.processes import ALONE, Processes
from ohem.training.run import newest_folder
from shapes import make_shapes

pytestmark = pytest.mark.slow

RECIPE = """
base: lite0
iterations: 12
images_per_step: 2
accumulate: true
log_every: 4
checkpoint_every: 2
detector:
  image: {shortest: 72, longest: 96}
  backbone: {strides: [16], scales: [6.0]}
  head: {pool_size: 3, channels: 16, fc: [32], dropout: 0.3}
"""


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("items", [0, 1, 2, 5, 16])
def test_shares_are_the_whole_in_order_and_even(items: int, count: int) -> None:
    shares = [Processes(rank, count).share(range(items)) for rank in range(count)]
    assert [item for share in shares for item in share] == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for rank, share in enumerate(shares):
        assert share[:1] in ([], [Processes(rank, count).offset(items)])


def test_each_needs_an_image() -> None:
    Processes(0, 2).require_enough(2)
    with pytest.raises(OhemError, match="found 2; allowed with 3 processes: 3 or more"):
        Processes(0, 3).require_enough(2)


def test_alone_nothing_is_sent() -> None:
    layer = torch.nn.Linear(2, 2)
    ALONE.sum_gradients(layer)
    assert layer.weight.grad is None
    assert ALONE.sum([1.0, 2.0], torch.device("cpu")) == [1.0, 2.0]
    assert ALONE.gather({1: "a"}) == {1: "a"}
    assert ALONE.tell("x") == "x"


def test_each_joins_with_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the processes meet: NCCL sends objects by way of the current GPU."""
    calls: list[object] = []
    variables = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("ohem.training.processes.rendezvous", lambda *_, **__: iter([(HashStore(), 3, 4)]))
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend, **_: calls.append(backend))
    assert Processes.join(torch.device("cuda")).local_rank == 1
    Processes.join(torch.device("cuda", 2))
    Processes.join(torch.device("cpu"))
    assert calls == [torch.device("cuda", 1), "nccl", torch.device("cuda", 2), "nccl", "gloo"]


def test_the_newest_of_numbered_folders(tmp_path: Path) -> None:
    assert newest_folder(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    assert newest_folder(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run-2").mkdir()
    (tmp_path / "run-3").mkdir()
    assert newest_folder(tmp_path / "run") == tmp_path / "run-3"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    make_shapes(folder / "data", train=8, test=4)
    (folder / "r.yaml").write_text(RECIPE)
    return folder


def command(bench: Path, count: int, *arguments: str, restarts: int = 0) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    several = [*launcher, "--max-restarts", str(restarts)] if count > 1 else []
    return [sys.executable, *several, "-m", "ohem", "train", *arguments, "--workers", "0"]


def new_run(name: str, *overrides: str) -> list[str]:
    return ["r.yaml", *overrides, "--data", "data@train", "--val", "data@test", "--folder", name]


def environment(bench: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OHEM_CACHE": str(bench / "cache")}


def train(bench: Path, count: int, *arguments: str) -> None:
    done = subprocess.run(
        command(bench, count, *arguments), cwd=bench, env=environment(bench), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def difference(a: Path, b: Path) -> float:
    one, other = (load_file(folder / "weights.safetensors") for folder in (a, b))
    return max(float((one[key] - other[key]).abs().max()) for key in one)


@pytest.fixture(scope="module")
def alone(bench: Path) -> Path:
    train(bench, 1, *new_run("alone"))
    return bench / "alone"


@pytest.fixture(scope="module")
def together(bench: Path, alone: Path) -> Path:
    train(bench, 2, *new_run("together"))
    return bench / "together"


def test_two_processes_train_what_one_does(alone: Path, together: Path) -> None:
    assert difference(alone, together) == 0
    assert (alone / "log.jsonl").read_text().count("\n") == (together / "log.jsonl").read_text().count("\n")


def test_also_with_random_choices(bench: Path) -> None:
    for count in (1, 2):
        train(bench, count, *new_run(f"random-{count}", "sampler=random", "iterations=4"))
    assert difference(bench / "random-1", bench / "random-2") == 0


def test_also_in_float16_with_an_average_of_the_weights(bench: Path) -> None:
    for count in (1, 2):
        train(bench, count, *new_run(f"half-{count}", "precision=float16", "ema=0.9", "iterations=4"))
    assert difference(bench / "half-1", bench / "half-2") == 0


def test_also_faster_r_cnn_and_its_anchors_drawn_at_random(bench: Path) -> None:
    detector = "detector={kind: fasterrcnn_lite0, image: {shortest: 72, longest: 96}, head: {fc: [32]}}"
    for count in (1, 2):
        train(bench, count, *new_run(f"faster-{count}", detector, "sampler=random", "sampler.bg_lo=0", "iterations=4"))
    assert difference(bench / "faster-1", bench / "faster-2") == 0


def kill_one(bench: Path, name: str, restarts: int) -> int:
    """Start two processes, kill one in mid-training, and return torchrun's exit code."""
    with subprocess.Popen(
        command(bench, 2, *new_run(name), restarts=restarts),
        cwd=bench,
        env=environment(bench),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as launcher:
        checkpoint = bench / name / "checkpoints/last.pt"
        deadline = time.monotonic() + 120
        while not checkpoint.exists():
            assert launcher.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        workers = psutil.Process(launcher.pid).children()
        workers[-1].send_signal(signal.SIGKILL)
        try:
            _, said = launcher.communicate(timeout=120)
        finally:
            launcher.kill()
    assert "another process of this training stopped" in said
    assert "src/ohem" not in said  # no traceback of ours
    return launcher.returncode


def test_a_killed_process_stops_the_run_and_it_goes_on_in_any_number(bench: Path, alone: Path, together: Path) -> None:
    assert kill_one(bench, "killed", restarts=0) != 0
    assert not (bench / "killed/weights.safetensors").exists()
    train(bench, 2, "--resume", "killed")
    assert difference(bench / "killed", together) == 0


def test_or_it_goes_on_by_itself(bench: Path, together: Path) -> None:
    assert kill_one(bench, "restarted", restarts=1) == 0
    assert difference(bench / "restarted", together) == 0

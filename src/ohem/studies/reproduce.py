"""``ohem reproduce``: what is asked for, run as far as it goes, and reported."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ohem.data.builtin import make_builtin
from ohem.errors import OhemError
from ohem.recipes.recipe import load_recipe
from ohem.studies.full import full_study
from ohem.studies.jobs import Job
from ohem.studies.mini import mini_study
from ohem.studies.plan import Data, Study
from ohem.studies.report import Report, make_report, write_report
from ohem.studies.runner import Progress, needs_of, plan_jobs, progress_of, run_jobs, shard_of
from ohem.studies.workshop import Workshop


@dataclass(frozen=True)
class Sharing:
    """A study in parts: this machine's is number ``part`` of ``parts``, from 0."""

    part: int = 0
    parts: int = 1

    @classmethod
    def parse(cls, text: str) -> "Sharing":
        """``0/2`` is the first of two parts.

        Raises:
            OhemError: not that.
        """
        part, slash, parts = text.partition("/")
        if not (slash and part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
            raise OhemError(f"shard: found {text!r}; allowed: I/N with I from 0 to N - 1, such as 0/2 and 1/2")
        return cls(int(part), int(parts))


def open_study(
    target: str,
    scale: Literal["full", "mini"],
    out: Path,
    *,
    data: str | None = None,
    test: str | None = None,
    coco: str | None = None,
    classes: Sequence[str] = (),
    recipe: str | None = None,
    progress: Callable[[int, int], None] | None = lambda done, total: None,
) -> Study:
    """The study of a scale over someone's data.

    Args:
        target: what is going to be asked for; looked up before any data are made.
        scale: ``full``: the paper's networks, data and schedules. ``mini``: one small network.
        out: where built-in data go.
        data: full: the folder that ``ohem data`` filled. mini: a data source; or a VOC folder with the splits trainval
            and test, and their proposals in ``selective_search/trainval.mat`` and ``test.mat`` if there are any. None,
            mini only: the built-in data.
        test: mini: the source of the test images.
        coco: mini: a COCO source, of which 30 % are held out to test on.
        classes: mini: the class list.
        recipe: mini: what all trainings share.
        progress: told how many built-in images are drawn, and how many there are; None: a plan, for which none are drawn.

    Raises:
        OhemError: arguments that do not go together, or no such target.
    """
    needs_of(mini_study({}), target)
    if scale == "full":
        if data is None or test or coco or classes or recipe:
            raise OhemError(
                "reproduce: found no --data, or settings of mini; allowed with --scale full: --data DIR alone"
            )
        if not Path(data).is_dir():
            raise OhemError(f"{data}: found no such folder; allowed: the one that ohem data filled")
        return full_study(Path(data))
    if data is None and (test or classes):
        raise OhemError("reproduce: found --test or --classes; allowed beside --data DATA, not with the built-in data")
    found = {"main": _main_data(data, test, tuple(classes), out, progress)}
    if coco is not None:
        found["coco"] = Data((coco,))
    name = recipe or ("mini_demo" if data is None else "mini")
    shared = load_recipe(name)
    if shared.detector.given_proposals is None:
        found = {key: replace(each, proposals=(), test_proposals=()) for key, each in found.items()}
    return mini_study(found, name, shared.detector.image.shortest, shared.iterations)


def _main_data(
    data: str | None, test: str | None, classes: tuple[str, ...], out: Path, progress: Callable[[int, int], None] | None
) -> Data:
    if data is None:
        folder = out / "data"
        if progress:
            make_builtin(folder, train_images=400, test_images=200, progress=progress)
        return Data((f"{folder}@train",), (f"{folder}@test",))
    if test is not None:
        return Data((data,), (test,), classes=classes)
    splits, folder = [f"{data}@trainval", f"{data}@test"], Path(data)
    if not all((folder / "ImageSets/Main" / f"{name}.txt").is_file() for name in ("trainval", "test")):
        raise OhemError(f"{data}: found no splits trainval and test; allowed: a VOC folder with them, or --test DATA")
    files = [folder / "selective_search" / f"{name}.mat" for name in ("trainval", "test")]
    there = [file for file in files if file.is_file()]
    if len(there) == 1:
        (gone,) = set(files) - set(there)
        raise OhemError(
            f"{gone}: found no such file, but {there[0].name}; allowed: the proposals of both, or of neither"
        )
    named = [(str(file),) if file in there else () for file in files]
    return Data((splits[0],), (splits[1],), named[0], named[1], classes)


def plan(workshop: Workshop, target: str, seeds: int, sharing: Sharing) -> tuple[list[Job], Progress]:
    """This part's jobs, and what is done of them."""
    jobs = shard_of(plan_jobs(workshop.study, target, seeds), sharing.part, sharing.parts)
    return jobs, progress_of(jobs, workshop)


def collect(workshop: Workshop, target: str, seeds: int, folder: Path) -> int:
    """Take over the results in another ``out``, of any target; returns how many.

    Raises:
        OhemError: there are none, they differ from one's own, or those of this target have other settings.
    """
    if (folder / "results").is_dir():
        progress_of(plan_jobs(workshop.study, target, seeds), replace(workshop, out=folder))  # for its checks
    return workshop.results.collect(folder)


def reproduce(workshop: Workshop, target: str, seeds: int, sharing: Sharing) -> tuple[Report, Path]:
    """Run what is not finished and write the page; what cannot be run is listed there, and the rest goes on."""
    jobs, _ = plan(workshop, target, seeds, sharing)
    not_run = run_jobs(jobs, workshop)
    return report(workshop, target, seeds, not_run)


def report(workshop: Workshop, target: str, seeds: int, not_run: dict[str, str]) -> tuple[Report, Path]:
    """The page of what is finished so far."""
    made = make_report(workshop, target, seeds, not_run)
    return made, write_report(made, workshop.out, target)

"""Which jobs a study needs, which are done, and running the rest: resumable, and in parts on several machines."""

import time
from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

from ohem.data.rules import listed, one_line
from ohem.errors import OhemError, did_you_mean
from ohem.studies.claims import CLAIMS
from ohem.studies.cost import FORMS
from ohem.studies.jobs import CostJob, Job, NeglectJob, TrainJob, TuneJob, UseJob, run_job, settings_digest
from ohem.studies.plan import Study
from ohem.studies.workshop import Result, Workshop
from ohem.training.run import fingerprint

FIGURE3 = ("frcn_bg0", "frcn", "all", "ohem")


def targets(study: Study) -> list[str]:
    """What ``ohem reproduce`` can be asked for."""
    return sorted([*study.tables, "table2", "figure3", "claims"])


def needs_of(study: Study, target: str) -> list[str]:
    """Names of trainings, with a use behind a ``+``, or ``neglect`` or ``cost``.

    Raises:
        OhemError: there is no such target.
    """
    if target not in targets(study):
        hint = did_you_mean(target, targets(study))
        raise OhemError(f"reproduce: found {target!r}{hint}; allowed: {', '.join(targets(study))}")
    if target == "table2":
        return ["cost"]
    if target == "figure3":
        return list(FIGURE3)
    if target == "claims":
        rows = [row for table in study.tables.values() if table.name.startswith("table") for row in table.rows]
        return list(
            dict.fromkeys([n for claim in CLAIMS for n in claim.needs] + [f"{r.training}+{r.use}" for r in rows])
        )
    return [f"{row.training}+{row.use}" for row in study.tables[target].rows]


def plan_jobs(study: Study, target: str, seeds: int) -> list[Job]:
    """All jobs of a target, in an order in which each finds what it needs: tuning first, then seed after seed."""
    names = needs_of(study, target)
    wanted: dict[str, set[str]] = {}
    for need in names:
        name, _, use = need.partition("+")
        if name in study.trainings:
            wanted.setdefault(name, set()).update({use} - {"", "plain", "plain_part"})
    jobs: list[Job] = []
    tuned = dict.fromkeys(study.tuned(study.trainings[name]) for name in wanted)
    jobs += [TuneJob(study.trainings[name], rate) for name in tuned for rate in study.rates]
    for seed in range(seeds):
        for name, uses in wanted.items():
            training = study.trainings[name]
            job = TrainJob(training, seed, study.tuned(training), study.rates)
            judged_here = training.data not in study.data or not study.data[training.data].server
            jobs += [job, *(UseJob(job, use) for use in study.uses if use in uses and judged_here)]
            if name == "ohem" and "neglect" in names:
                jobs.append(NeglectJob(job))
    if "cost" in names:
        jobs += [CostJob(network, form) for network in study.networks for form in FORMS]
    return jobs


def shard_of(jobs: Sequence[Job], part: int, parts: int) -> list[Job]:
    """One machine's share. Jobs that depend on each other stay together, and no two shares have one in common."""
    groups = list(dict.fromkeys(job.group for job in jobs))
    mine = set(groups[part::parts])
    return [job for job in jobs if job.group in mine]


@dataclass(frozen=True)
class Progress:
    """What is done of some jobs.

    Attributes:
        done: how many.
        left: those that are not.
        seconds: the time that the rest will take, from finished jobs of the same kind; None where there are none.
    """

    done: int
    left: tuple[Job, ...]
    seconds: float | None


def progress_of(jobs: Sequence[Job], workshop: Workshop) -> Progress:
    """Look up what is finished.

    Raises:
        OhemError: a result was made with other settings than the study has now.
    """
    known: dict[str, list[float]] = {}
    left = []
    for job in jobs:
        result = workshop.results.get(job.name)
        if result is None:
            left.append(job)
            continue
        _require_same_settings(job, result.get("settings"), workshop)
        known.setdefault(_kind(job), []).append(result["job_seconds"])
        known.setdefault(type(job).__name__, []).append(result["job_seconds"])
    times = [known.get(_kind(job)) or known.get(type(job).__name__) for job in left]
    known_times = [median(each) for each in times if each]  # a job that stood still tells nothing of the others
    seconds = sum(known_times) * len(left) / len(known_times) if known_times else None if left else 0.0
    return Progress(len(jobs) - len(left), tuple(left), seconds)


def _kind(job: Job) -> str:
    """Jobs that take about as long as each other."""
    if isinstance(job, UseJob):
        return f"{type(job).__name__} {job.use}"
    return f"{type(job).__name__} {job.training.name}" if isinstance(job, TuneJob | TrainJob) else job.name


def _require_same_settings(job: Job, found: str | None, workshop: Workshop) -> None:
    if not isinstance(job, TuneJob | TrainJob) or job.training.data not in workshop.study.data:
        return
    if not job.missing(workshop):
        expected = settings_digest(job.recipe(workshop))
        if found != expected:
            path = workshop.results.folder / f"{job.name}.json"
            raise OhemError(
                f"{path}: settings: found {found}; allowed: {expected}, as the study is now, or another --out"
            )


def _require_same_data(jobs: Sequence[Job], workshop: Workshop) -> None:
    """Raise OhemError where finished trainings were tested on other data than each other, or than those that are given."""
    left = {job.name for job in progress_of(jobs, workshop).left}
    for name, data in workshop.study.data.items():
        trained = [job for job in jobs if isinstance(job, TrainJob) and job.training.data == name]
        known = [job for job in trained if not job.missing(workshop)]  # else its recipe is not
        tested = {job: result["test_fingerprint"] for job in known if (result := _tested(job, workshop))}
        first = next(iter(tested), None)
        if first is None:
            continue
        found = [job for job, digest in tested.items() if digest != tested[first]]
        than, allowed = f"those of {first.name}.json", "an --out for each data set"
        # Without files, proposals are made, which takes long: only where something of these data is to be run.
        if not found and (data.test_proposals or any(job.name in left for job in trained)):
            try:
                given = fingerprint(*workshop.test_images(first.training, first.recipe(workshop)))
            except OhemError:
                continue  # told of each row that needs them
            found, than = [first] if given != tested[first] else [], f"{listed(data.test or data.train)}"
        if found:
            path = workshop.results.folder / f"{found[0].name}.json"
            raise OhemError(f"{path}: found a result of other test images or proposals than {than}; allowed: {allowed}")
    _require_same_training_data(jobs, left, workshop)


def _require_same_training_data(jobs: Sequence[Job], left: Container[str], workshop: Workshop) -> None:
    """Raise OhemError where finished trainings had other images or proposals than each other, or than those given."""
    trainings = [job for job in jobs if isinstance(job, TrainJob) and job.training.data in workshop.study.data]
    going_on = {job.training.data for job in trainings if job.name in left}
    first: dict[tuple[str, float, float, int | None], tuple[str, str]] = {}
    for job in trainings:
        result = workshop.results.get(job.name)
        if not result or "fingerprint" not in result or job.training.rounds > 1 or job.missing(workshop):
            continue
        name, part = job.training.data, job.recipe(workshop).data
        key = (name, part.fraction, part.holdout, job.seed if part.fraction < 1 else None)
        if key not in first and name in going_on:
            with suppress(OhemError):  # told of each row that needs the data
                first[key] = job.data_fingerprint(workshop), listed(workshop.study.data[name].train)
        digest, than = first.setdefault(key, (result["fingerprint"], f"{job.name}.json"))
        if result["fingerprint"] != digest:
            raise OhemError(
                f"{workshop.results.folder / job.name}.json: found a training on other images or proposals than those of"
                f" {than}; allowed: an --out for each data set"
            )


def _tested(job: TrainJob, workshop: Workshop) -> Result | None:
    result = workshop.results.get(job.name)
    return result if result and "test_fingerprint" in result else None


def run_jobs(jobs: Sequence[Job], workshop: Workshop) -> dict[str, str]:
    """Run all that are not finished; one that cannot be run does not stop the others.

    Returns:
        The names of jobs that were not run, and why.
    """
    not_run: dict[str, str] = {}
    _require_same_data(jobs, workshop)
    for job in progress_of(jobs, workshop).left:
        needed = job.train.training.data if isinstance(job, UseJob | NeglectJob) else _data_of(job)
        if needed not in workshop.study.data:
            not_run[job.name] = f"no data given for {needed!r}"
            continue
        waits = job.missing(workshop)
        if waits:
            not_run[job.name] = f"waits for {', '.join(waits)}"
            continue
        rest = progress_of(jobs, workshop)
        total = rest.done + len(rest.left)
        left = "" if rest.seconds is None else f", about {duration(rest.seconds)} left"
        workshop.reporter.say(f"{time.strftime('%H:%M')} {job.name} ({rest.done} of {total} done{left})")
        try:
            run_job(job, workshop)
        except (OhemError, RuntimeError, MemoryError) as error:
            # torch says with RuntimeErrors that memory is short, or an operator missing.
            ours = isinstance(error, OhemError)
            not_run[job.name] = str(error) if ours else f"{type(error).__name__}: {one_line(str(error), 300)}"
            workshop.reporter.warn(f"{job.name}: not run: {not_run[job.name]}")
    return not_run


def _data_of(job: TuneJob | TrainJob | CostJob) -> str:
    return "main" if isinstance(job, CostJob) else job.training.data


def duration(seconds: float) -> str:
    """For people: ``3 h 20 min``."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"

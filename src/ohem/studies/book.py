"""Finished results, read as numbers: per training, seed, use and metric."""

from collections.abc import Sequence
from dataclasses import dataclass

from ohem.studies.workshop import Result, Results


def same_machine(a: Result, b: Result) -> bool:
    """Whether two measurements of cost may be divided by each other."""
    return all(a.get(key) == b.get(key) for key in ("machine", "threads", "device"))


@dataclass(frozen=True)
class Book:
    """What tables and claims read.

    Attributes:
        results: the folder.
        seeds: that count.
    """

    results: Results
    seeds: Sequence[int]

    def values(self, training: str, metric: str, use: str = "plain") -> dict[int, float]:
        """Seed -> value, for the seeds that are finished and have one.

        Args:
            training: its name.
            metric: ``map50``, ``ap:cat``, ``coco:AP``, in percent; ``loss_test``, ``loss_train``: mean loss over all
                RoIs, of the test images or, at the end, of the training images.
            use: how the detector was used.
        """
        found = {}
        for seed in self.seeds:
            value = _value(self.results.get(result_name(training, seed, use)), metric, use)
            if value is not None:
                found[seed] = value
        return found

    def gains(self, better: str, base: str, metric: str = "map50", use: str = "plain") -> list[float]:
        """Differences of two trainings over the seeds that both have."""
        return self.differences((better, use), (base, use), metric)

    def differences(self, better: tuple[str, str], base: tuple[str, str], metric: str = "map50") -> list[float]:
        """The same, where the two are used in different ways: (training, use) each."""
        a, b = (self.values(training, metric, use) for training, use in (better, base))
        return [a[seed] - b[seed] for seed in sorted(set(a) & set(b))]

    def classes(self, training: str) -> list[str]:
        """The classes whose average precision was measured."""
        results = (self.results.get(result_name(training, seed)) for seed in self.seeds)
        first: Result = next((result["plain"] for result in results if result and "plain" in result), {})
        return [metric.removeprefix("ap:") for metric in first if metric.startswith("ap:")]

    def curve(self, training: str) -> list[tuple[int, list[float]]]:
        """(iteration, mean loss over all RoIs of training images of each seed), along the training."""
        points: dict[int, list[float]] = {}
        for seed in self.seeds:
            for iteration, loss in (self.results.get(result_name(training, seed)) or {}).get("loss_train", []):
                points.setdefault(iteration, []).append(loss)
        return sorted(points.items())


def result_name(training: str, seed: int, use: str = "plain") -> str:
    """Where a number stands: plain uses are measured with the training, others on their own."""
    return f"{training}-s{seed}" + ("" if use.startswith("plain") else f"-{use}")


def _value(result: Result | None, metric: str, use: str) -> float | None:
    if result is None or "server" in result:
        return None
    if metric == "loss_train":
        return float(result["loss_train"][-1][1])
    value = result[metric] if metric == "loss_test" else result[use].get(metric)
    return None if value is None else float(value)

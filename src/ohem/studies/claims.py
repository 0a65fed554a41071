"""The paper's claims C1 to C13, each with a test that was written down before the runs.

Every claim is tested for holding and, where a test can show it, for its opposite (C11 never fails, C6 not by memory).
Both families of p-values are corrected by Holm for the number of claims, so that the chance of even one false verdict of
a kind is below 5 %. A claim with several parts holds when all of them do, so its p-value is the largest of theirs; it
fails when any of them does, so the smallest counts, times their number. A claim of no difference is tested for
equivalence within 1 mAP.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ohem.studies.book import Book, same_machine
from ohem.studies.statistics import holm, interval, p_columns_differ, p_greater, p_less, p_outside, p_within

LEVEL = 0.05
MARGIN = 1.0
"""mAP, in percent, within which two arms count as equal."""

Verdict = Literal["holds", "does not hold", "not enough evidence"]


@dataclass(frozen=True)
class Evidence:
    """What the runs say of one claim.

    Attributes:
        p_holds: p-value of the claim.
        p_fails: p-value of its opposite.
        measured: for people: what was measured, and its mean with a 95 % interval over seeds.
    """

    p_holds: float
    p_fails: float
    measured: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        id: as in the documentation, C1 to C13.
        statement: what the paper claims.
        paper: its figures.
        test: what is tested, stated beforehand.
        needs: the trainings, with their uses, whose results it reads: ``ohem``, ``ohem+mb``, ``neglect``, ``cost``.
        judge: the test.
    """

    id: str
    statement: str
    paper: str
    test: str
    needs: tuple[str, ...]
    judge: Callable[[Book], Evidence]


@dataclass(frozen=True)
class Judgement:
    """A claim with its verdict, after correction for the number of claims."""

    claim: Claim
    evidence: Evidence
    verdict: Verdict


def judge_all(book: Book) -> list[Judgement]:
    """All claims, whether their runs are there or not: what was not run is not enough evidence, and still counts."""
    evidence = [claim.judge(book) for claim in CLAIMS]
    holds = holm([e.p_holds for e in evidence])
    fails = holm([e.p_fails for e in evidence])
    verdicts: list[Verdict] = [
        "holds" if h < LEVEL else "does not hold" if f < LEVEL else "not enough evidence"
        for h, f in zip(holds, fails, strict=True)
    ]
    return [Judgement(*each) for each in zip(CLAIMS, evidence, verdicts, strict=True)]


Part = tuple[str, Sequence[float], float]
"""What is measured, its value for each seed, and the value that its mean is claimed to pass."""


def _all_above(
    parts: Sequence[Part],
    more: Sequence[tuple[str, Sequence[float]]] = (),
    *,
    tell: Callable[[Sequence[float]], str] | None = None,
) -> Evidence:
    """Every part's mean is above its bound; ``more`` is only told."""
    told = [(label, (tell or _told)(values)) for label, values in (*((p[0], p[1]) for p in parts), *more)]
    return Evidence(
        max(p_greater(values, bound) for _, values, bound in parts),
        min(1.0, len(parts) * min(p_less(values, bound) for _, values, bound in parts)),
        tuple(told),
    )


def _told(values: Sequence[float]) -> str:
    return f"{interval(values)} (n = {len(values)})" if values else "not run"


def _told_ratio(values: Sequence[float]) -> str:
    return f"{interval(values).text(signed=False)} (n = {len(values)})" if values else "not run on one machine"


def _c1(book: Book) -> Evidence:
    more = [
        (f"OHEM - FRCN, {label}", book.gains("ohem", "frcn", metric))
        for label, metric in (("mAP at IoU 0.7", "map70"), ("COCO's AP", "coco:AP"))
    ]
    return _all_above([("OHEM - FRCN, mAP", book.gains("ohem", "frcn"), 0.0)], more)


def _c2(book: Book) -> Evidence:
    gain = book.gains("frcn_bg0", "frcn")
    return Evidence(p_less(gain, MARGIN), p_greater(gain, MARGIN), (("bg_lo 0 - bg_lo 0.1, mAP", _told(gain)),))


def _c3(book: Book) -> Evidence:
    gain, frcn = book.gains("ohem_n1", "ohem"), book.gains("frcn_n1", "frcn")
    told = (("OHEM, N 1 - N 2, mAP", _told(gain)), ("FRCN, N 1 - N 2, mAP", _told(frcn)))
    return Evidence(p_within(gain, MARGIN), p_outside(gain, MARGIN), told)


def _c4(book: Book) -> Evidence:
    return _all_above(
        [
            ("OHEM - all RoIs, N 2, mAP", book.gains("ohem", "all"), 0.0),
            ("OHEM - all RoIs, N 1, mAP", book.gains("ohem_n1", "all_n1"), 0.0),
        ],
        [("all RoIs - FRCN, N 2, mAP", book.gains("all", "frcn"))],
    )


def _c5(book: Book) -> Evidence:
    order = ("frcn_bg0", "frcn", "all", "ohem")
    return _all_above([(f"{a} - {b}, mean loss", book.gains(a, b, "loss_train"), 0.0) for a, b in pairwise(order)])


REASONABLE_TIME, REASONABLE_MEMORY = 1.76, 1.39
"""The paper's own overheads, its larger ones: 1.00 s against 0.57 s, 3.6 GB against 2.6 GB."""


def _ratios(book: Book, network: str, dear: str, cheap: str) -> tuple[list[float], list[float]]:
    """Time step by step (both saw the same images), and peak memory."""
    a, b = (book.results.get(f"cost-{network}-{form}") for form in (dear, cheap))
    if a is None or b is None or not same_machine(a, b):
        return [], []
    return [x / y for x, y in zip(a["each"], b["each"], strict=False)], [a["memory_gb"] / b["memory_gb"]]


def _c6(book: Book) -> Evidence:
    told, holds, fails, memory_fits = [], [], [], True
    for network in ("vgg_cnn_m_1024", "vgg16"):
        times, spaces = _ratios(book, network, "ohem", "frcn")
        told += [
            (f"{network}: time ratio", _told_ratio(times)),
            (f"{network}: memory ratio", _told_ratio(spaces)),
        ]
        holds.append(p_less(times, REASONABLE_TIME))
        fails.append(p_greater(times, REASONABLE_TIME))
        memory_fits = memory_fits and all(space <= REASONABLE_MEMORY for space in spaces)
    return Evidence(max(holds) if memory_fits else 1.0, min(1.0, len(fails) * min(fails)), tuple(told))


def _c7(book: Book) -> Evidence:
    parts: list[Part] = []
    memory: list[tuple[str, list[float]]] = []
    for network in ("vgg_cnn_m_1024", "vgg16"):
        time, space = _ratios(book, network, "loss_layer", "ohem")
        parts.append((f"{network}: time, loss layer / read-only", time, 2.0))
        memory.append((f"{network}: memory, loss layer / read-only", space))
    return _all_above(parts, memory, tell=_told_ratio)


def _c8(book: Book) -> Evidence:
    return _all_above(
        [
            ("FRCN - FRCN with half foreground, mAP", book.gains("frcn", "frcn_fg_half"), 0.0),
            ("FRCN - FRCN without a foreground share, mAP", book.gains("frcn", "frcn_fg_free"), 0.0),
        ]
    )


def _c9(book: Book) -> Evidence:
    large, small = (
        {s: ohem[s] - frcn[s] for s in set(ohem) & set(frcn)}
        for ohem, frcn in (
            (book.values("ohem", "map50"), book.values("frcn", "map50")),
            (book.values("ohem_quarter", "map50"), book.values("frcn_quarter", "map50")),
        )
    )
    growth = [large[s] - small[s] for s in sorted(set(large) & set(small))]
    return _all_above(
        [("gain on all images - gain on a quarter of them, mAP", growth, 0.0)],
        [("gain on the cluttered set, AP50", book.gains("ohem_coco", "frcn_coco", "coco:AP50"))],
    )


def _c10(book: Book) -> Evidence:
    part = "plain_part"
    return _all_above(
        [
            ("OHEM - FRCN, both with M and B, mAP", book.gains("ohem_m", "frcn_m", use="mb"), 0.0),
            ("OHEM: with M and B - without, mAP", book.differences(("ohem_m", "mb"), ("ohem", part)), 0.0),
            ("FRCN: with M and B - without, mAP", book.differences(("frcn_m", "mb"), ("frcn", part)), 0.0),
        ],
        [
            ("OHEM: M in training alone, mAP", book.differences(("ohem_m", part), ("ohem", part))),
            ("FRCN: M in training alone, mAP", book.differences(("frcn_m", part), ("frcn", part))),
        ],
    )


def _c11(book: Book) -> Evidence:
    classes = book.classes("ohem")
    columns = [book.gains("ohem", "frcn", f"ap:{name}") for name in classes]
    # A class without a test object has no values; all others have one for each seed that both trainings have.
    rows = [list(row) for row in zip(*filter(None, columns), strict=True)]
    told = tuple((f"OHEM - FRCN, {name}", _told(column)) for name, column in zip(classes, columns, strict=True))
    return Evidence(p_columns_differ(rows), 1.0, told)


def _c12(book: Book) -> Evidence:
    small, medium, large = (book.gains("ohem_coco", "frcn_coco", f"coco:AP{size}") for size in "sml")
    return _all_above(
        [
            ("gain, medium - small, AP", [m - s for m, s in zip(medium, small, strict=False)], 0.0),
            ("gain, medium - large, AP", [m - x for m, x in zip(medium, large, strict=False)], 0.0),
        ],
        [("small", small), ("medium", medium), ("large", large)],
    )


def _c13(book: Book) -> Evidence:
    seen = [r for seed in book.seeds if (r := book.results.get(f"neglect-s{seed}"))]
    count, images = sum(r["all_background"] for r in seen), sum(r["images"] for r in seen)
    evidence = _all_above(
        [
            ("rise of the class's loss while left out", [_rise(r["loss_left_out"]) for r in seen], 0.0),
            ("fall of it once it may be chosen", [-_rise(r["loss_chosen"]) for r in seen], 0.0),
        ],
        [("fall of its share of the chosen RoIs, %", [-100 * _rise(r["share_chosen"]) for r in seen])],
    )
    mixed = f"{count} all background, {sum(r['all_foreground'] for r in seen)} all foreground, of {images}"
    return Evidence(evidence.p_holds, evidence.p_fails, (*evidence.measured, ("images' mini-batches", mixed)))


def _rise(values: Sequence[float]) -> float:
    return values[-1] - values[0]


CLAIMS = (
    Claim(
        "C1",
        "OHEM beats the heuristic sampler",
        "VGGM 59.6 to 62.0, VGG16 67.2 to 69.9",
        "mean difference of mAP above 0",
        ("frcn", "ohem"),
        _c1,
    ),
    Claim(
        "C2",
        "bg_lo = 0 without mining is worse or no better",
        "VGGM 59.6 to 57.2, VGG16 67.2 to 67.5",
        "mean difference of mAP below +1",
        ("frcn", "frcn_bg0"),
        _c2,
    ),
    Claim(
        "C3",
        "OHEM is robust to one image a step",
        "FRCN 67.2 to 66.3, OHEM 69.9 to 69.7",
        "OHEM with N 1 and N 2 equal within 1 mAP",
        ("frcn", "frcn_n1", "frcn_n1_bg0", "ohem", "ohem_n1"),
        _c3,
    ),
    Claim(
        "C4",
        "training on all RoIs helps less than OHEM",
        "VGG16, N 1 and 2: 67.5 and 68.7, OHEM 69.7 and 69.9",
        "OHEM above all RoIs, with N 2 and with N 1, learning rates tuned",
        ("frcn", "all", "all_n1", "ohem", "ohem_n1"),
        _c4,
    ),
    Claim(
        "C5",
        "OHEM ends in the lowest mean loss over all RoIs of the training images",
        "figure 3: bg_lo 0 above bg_lo 0.1 above B 2048 above OHEM",
        "each of the three differences above 0",
        ("frcn_bg0", "frcn", "all", "ohem"),
        _c5,
    ),
    Claim(
        "C6",
        "the cost is reasonable",
        "time x 1.69 and x 1.75, memory x 1.38 and x 1.36",
        f"time of a step at most x {REASONABLE_TIME}, memory at most x {REASONABLE_MEMORY}, for both networks",
        ("cost",),
        _c6,
    ),
    Claim(
        "C7",
        "two RoI networks are more than twice as fast as zeroing the losses of easy RoIs",
        "text of section 4.2",
        "ratio of step times above 2, for both networks",
        ("cost",),
        _c7,
    ),
    Claim(
        "C8",
        "another foreground share, or none, costs the heuristic sampler accuracy",
        "about 3 points",
        "mAP with a quarter foreground above both others",
        ("frcn", "frcn_fg_half", "frcn_fg_free"),
        _c8,
    ),
    Claim(
        "C9",
        "the gain grows with larger and harder data",
        "07 +2.7, 07+12 +4.6, COCO AP50 +6.6",
        "gain on all images above the gain on a quarter of them",
        ("frcn", "ohem", "frcn_quarter", "ohem_quarter", "frcn_coco", "ohem_coco"),
        _c9,
    ),
    Claim(
        "C10",
        "several scales and iterated boxes add to OHEM",
        "FRCN 67.2 to 72.4, OHEM 69.9 to 75.1",
        "with M and B, OHEM above FRCN, and each above itself without",
        ("frcn", "ohem", "frcn_m+mb", "ohem_m+mb"),
        _c10,
    ),
    Claim(
        "C11",
        "gains differ by class",
        "bottle, chair and tvmonitor gain most",
        "F test of the classes' gains over seeds; which class gains most depends on the data",
        ("frcn", "ohem"),
        _c11,
    ),
    Claim(
        "C12",
        "objects of medium size gain most on COCO",
        "AP medium +4.9, small +1.5, large +3.3",
        "gain in medium AP above that in small and in large AP",
        ("frcn_coco", "ohem_coco"),
        _c12,
    ),
    Claim(
        "C13",
        "nothing is neglected: a class left out gains loss until it is chosen",
        "text of section 4.1",
        "a trained detector's loss of one class rises while it is left out, and falls once it may be chosen",
        ("ohem", "neglect"),
        _c13,
    ),
)

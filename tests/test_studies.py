"""Studies: what is planned can be run, what is run is kept, and what follows was written down before."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ohem.data.dataset import ImageRecord
from ohem.errors import OhemError
from ohem.opening import SILENT
from ohem.recipes.recipe import load_recipe, override_spec
from ohem.studies.book import Book
from ohem.studies.claims import CLAIMS, judge_all
from ohem.studies.full import full_data, full_study
from ohem.studies.jobs import NeglectJob, TrainJob, TuneJob, UseJob, _round, left_out_class, settings_digest
from ohem.studies.mini import mini_study
from ohem.studies.paper import voc_row
from ohem.studies.plan import Data, Study
from ohem.studies.report import cost_rows, make_report, text_rows, write_report
from ohem.studies.reproduce import Sharing, collect, open_study, reproduce
from ohem.studies.runner import duration, needs_of, plan_jobs, progress_of, run_jobs, shard_of, targets
from ohem.studies.tables import fill
from ohem.studies.workshop import Results, Workshop
from ohem.training.run import Run
from shapes import make_shapes

MACHINE = {"cpu_count": 2, "processor": "made"}


def paper_folder(folder: Path) -> Path:
    for name in ("VOCdevkit/VOC2007", "VOCdevkit/VOC2012", "train2014", "val2014"):
        (folder / name).mkdir(parents=True)
    return folder


@pytest.fixture(params=["mini", "full"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Study:
    if request.param == "full":
        return full_study(paper_folder(tmp_path))
    return mini_study({"main": Data(("a",), ("b",)), "coco": Data(("c",))})


def test_every_training_has_a_recipe_and_every_use_a_detector(study: Study) -> None:
    for training in study.trainings.values():
        recipe = load_recipe(training.recipe, training.overrides)
        assert training.data in study.data
        for overrides in study.uses.values():
            override_spec(recipe.detector, overrides)


def test_tables_and_claims_name_trainings_and_uses_that_exist(study: Study) -> None:
    for target in targets(study):
        for need in needs_of(study, target):
            name, _, use = need.partition("+")
            assert name in study.trainings or name in ("neglect", "cost")
            assert not use or use in study.uses
    assert {f"C{i}" for i in range(1, 14)} == {claim.id for claim in CLAIMS}
    assert {"table1", "table2", "table3", "table4", "table5", "table6", "figure3", "claims"} < set(targets(study))


def test_table6_tells_one_scale_from_several(study: Study) -> None:
    for row in study.tables["table6"].rows:
        training = study.trainings[row.training]
        recipe = load_recipe(training.recipe, training.overrides)
        image = override_spec(recipe.detector, study.uses[row.use]).image
        scales = row.label.partition("M: ")[2].partition(", B")[0]
        assert bool(recipe.detector.image.train_scales) == ("train" in scales), row.label
        assert (len(image.test_scales) > 1) == ("test" in scales), row.label


def test_jobs_of_different_shards_never_wait_for_each_other(study: Study) -> None:
    jobs = plan_jobs(study, "claims", 3)
    shards = [shard_of(jobs, part, 3) for part in range(3)]
    assert sorted(job.name for shard in shards for job in shard) == sorted(job.name for job in jobs)
    assert len({job.name for job in jobs}) == len(jobs)
    for shard in shards:
        before: set[str] = set()
        for job in shard:
            if isinstance(job, TrainJob):
                assert {f"tune-{job.group}-{rate:g}" for rate in job.rates} <= before
            if isinstance(job, UseJob):
                assert job.train.name in before
            before.add(job.name)


def test_rates_are_tuned_with_equal_effort_for_every_row_of_table_1() -> None:
    study = mini_study({"main": Data(("a",), ("b",))})
    tuned = [job.training.name for job in plan_jobs(study, "table1", 1) if isinstance(job, TuneJob)]
    assert {tuned.count(row.training) for row in study.tables["table1"].rows} == {3}


def test_a_folder_with_parts_of_the_data_runs_what_it_can(tmp_path: Path) -> None:
    (tmp_path / "VOCdevkit/VOC2007").mkdir(parents=True)
    assert set(full_data(tmp_path)) == {"main"}
    study = full_study(tmp_path)
    table = fill(study.tables["table5"], Book(Results(tmp_path), range(1)), study)
    assert {row.missing for row in table.rows} == {
        "not run: no data given for 'coco'",
        "not run: no data given for 'coco_trainval'",
    }


@pytest.mark.parametrize("text", ["2/2", "1", "-1/2", "a/b", "0/0"])
def test_shards_that_cannot_be(text: str) -> None:
    with pytest.raises(OhemError, match="0/2 and 1/2"):
        Sharing.parse(text)


def test_durations_for_people() -> None:
    assert (duration(100), duration(3600 * 3 + 20 * 60)) == ("2 min", "3 h 20 min")


# What follows from results: made by hand.


def put(results: Results, training: str, values: Sequence[float], losses: Sequence[float] = ()) -> None:
    for seed, value in enumerate(values):
        plain = {"map50": value, "map70": value / 2, "coco:AP": value / 2, "ap:cat": value, "ap:<i>": value}
        loss = losses[seed] if losses else 0.5
        result = {"seed": seed, "plain": plain, "plain_part": plain, "loss_test": 0.2, "loss_train": [[10, loss]]}
        results.put(f"{training}-s{seed}", {**result, "machine": MACHINE, "date": "2026-01-01"})


def verdicts(results: Results, seeds: int) -> Mapping[str, str]:
    return {each.claim.id: each.verdict for each in judge_all(Book(results, range(seeds)))}


def test_a_clear_gain_over_seeds_holds_and_its_opposite_does_not(tmp_path: Path) -> None:
    results = Results(tmp_path)
    put(results, "frcn", [60.0, 61.0, 59.0, 60.5, 60.2])
    put(results, "ohem", [62.9, 64.1, 61.8, 63.4, 63.2])
    assert verdicts(results, 5)["C1"] == "holds"
    swapped = Results(tmp_path / "swapped")
    put(swapped, "ohem", [60.0, 61.0, 59.0, 60.5, 60.2])
    put(swapped, "frcn", [62.9, 64.1, 61.8, 63.4, 63.2])
    assert verdicts(swapped, 5)["C1"] == "does not hold"


@pytest.mark.parametrize(("ohem", "seeds"), [([70.0], 1), ([60.5, 60.0, 60.9, 59.8, 60.3], 5), ([64.0, 66.0], 2)])
def test_one_seed_or_noise_or_two_seeds_are_not_enough(ohem: list[float], seeds: int, tmp_path: Path) -> None:
    results = Results(tmp_path)
    put(results, "frcn", [60.0, 61.0, 59.0, 60.5, 60.2][:seeds])
    put(results, "ohem", ohem)
    assert verdicts(results, seeds)["C1"] == "not enough evidence"


def test_nothing_run_is_not_enough_for_any_claim(tmp_path: Path) -> None:
    assert set(verdicts(Results(tmp_path), 5).values()) == {"not enough evidence"}


def test_equality_is_shown_by_closeness_and_not_by_noise(tmp_path: Path) -> None:
    close, noisy = Results(tmp_path / "close"), Results(tmp_path / "noisy")
    for results, spread in ((close, 0.02), (noisy, 3.0)):
        put(results, "ohem", [62.0] * 5)
        put(results, "ohem_n1", [62.0 + spread * d for d in (-1, 1, 0, -0.5, 0.5)])
    assert verdicts(close, 5)["C3"] == "holds"
    assert verdicts(noisy, 5)["C3"] == "not enough evidence"


def test_an_ordering_needs_each_of_its_steps(tmp_path: Path) -> None:
    losses = {"frcn_bg0": 0.5, "frcn": 0.4, "all": 0.3, "ohem": 0.2}
    ordered, broken = Results(tmp_path / "ordered"), Results(tmp_path / "broken")
    for results, changed in ((ordered, {}), (broken, {"all": 0.45})):
        for name, loss in (losses | changed).items():
            put(results, name, [60.0] * 5, losses=[loss + 0.001 * ((s * 7 + len(name)) % 5) for s in range(5)])
    assert verdicts(ordered, 5)["C5"] == "holds"
    assert verdicts(broken, 5)["C5"] == "does not hold"


def test_the_paper_s_rows_of_classes_have_the_paper_s_means() -> None:
    for data in ("07", "0712", "12", "07++12"):
        for method in ("frcn", "ohem", "ohem_mb"):
            mean, *per_class = voc_row(data, method).values()
            assert len(per_class) == 20
            assert sum(per_class) / 20 == pytest.approx(mean, abs=0.06), (data, method)


def test_tables_show_the_paper_s_number_ours_and_the_difference(tmp_path: Path) -> None:
    study, results = mini_study({"main": Data(("a",), ("b",))}), Results(tmp_path)
    put(results, "ohem", [60.0, 62.0])
    table = fill(study.tables["table1"], Book(results, range(2)), study)
    cell = table.rows[-1].cells[0]
    assert cell.ours is not None
    assert (cell.paper, cell.ours.mean, cell.seeds) == (69.9, 61.0, 2)
    assert cell.difference == pytest.approx(61.0 - 69.9)
    assert table.rows[0].missing == "not run yet"


def test_a_table_with_a_base_tells_the_paired_differences(tmp_path: Path) -> None:
    workshop = Workshop(mini_study({"main": Data(("a",), ("b",))}), tmp_path, SILENT)
    put(workshop.results, "ohem", [60.0, 62.0, 58.0])
    put(workshop.results, "ohem_half", [60.5, 61.5, 58.0])
    put(workshop.results, "ohem_low_rank", [59.0])
    report = make_report(workshop, "rankings", 3, {})
    exact, half, low_rank = (row.cells[0].gain for row in report.tables[0].rows)
    assert exact is None
    assert half is not None
    assert (half.mean, half.high) == pytest.approx((0.0, 4.303 * 0.5 / 3**0.5), abs=1e-3)  # Student's t of 2 degrees
    assert low_rank is not None
    assert low_rank.mean == -1.0
    page = write_report(report, tmp_path, "rankings").read_text()
    assert "difference to exact" in page
    assert "+0.00 [-1.24, +1.24]" in page
    assert [row[-1] for row in text_rows(report.tables[0]) if row[0].endswith("mAP")] == [
        "-",
        "+0.00 [-1.24, +1.24]",
        "-1.00",
    ]


def test_each_length_of_training_is_compared_with_the_line_above_it(tmp_path: Path) -> None:
    workshop = Workshop(mini_study({"main": Data(("a",), ("b",))}), tmp_path, SILENT)
    for name, values in (("frcn", [60.0, 61.0]), ("ohem", [60.5, 61.5]), ("frcn_twice_as_long", [60.0, 62.0])):
        put(workshop.results, name, values)
    put(workshop.results, "ohem_twice_as_long", [62.0, 65.0])
    report = make_report(workshop, "lengths", 2, {})
    gains = [row.cells[0].gain for row in report.tables[0].rows]
    assert [gain.mean if gain else None for gain in gains] == [None, None, None, 0.5, None, 2.5, None, None]
    assert "difference to the line above it" in write_report(report, tmp_path, "lengths").read_text()


def test_lengths_are_multiples_of_the_recipes_own_at_the_rate_of_their_sampler(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text("base: mini\niterations: 30\n")
    data = make_shapes(tmp_path / "data", train=2, test=1)
    study = open_study(
        "lengths", "mini", tmp_path, data=f"{data}@train", test=f"{data}@test", recipe=str(tmp_path / "short.yaml")
    )
    for arm in ("frcn", "ohem"):
        trainings = [study.trainings[f"{arm}_{length}_as_long"] for length in ("half", "twice", "four_times")]
        assert [training.overrides[-1] for training in trainings] == [f"iterations={n}" for n in (15, 60, 120)]
        assert {training.rate_of for training in trainings} == {arm}
    tuned = {job.name.split("-")[1] for job in plan_jobs(study, "lengths", 1) if isinstance(job, TuneJob)}
    assert tuned == {"frcn", "ohem"}


def test_a_class_without_test_objects_does_not_hide_the_others(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for training, gains in (("frcn", (0, 0)), ("ohem", (1, 9))):
        for seed in range(5):
            noise = seed / 10 if training == "frcn" else seed / 20
            ap = {"ap:cat": 50 + gains[0] + noise, "ap:dog": 50 + gains[1] - noise, "ap:zebra": None}
            plain = {"map50": 50.0, "map70": 30.0, "coco:AP": 20.0, **ap}
            result = {"seed": seed, "plain": plain, "plain_part": plain, "loss_test": 0.2, "loss_train": [[10, 0.5]]}
            results.put(f"{training}-s{seed}", result)
    assert verdicts(results, 5)["C11"] == "holds"


def test_the_page_has_figure_tables_and_verdicts_and_escapes_names(tmp_path: Path) -> None:
    workshop = Workshop(mini_study({"main": Data(("a",), ("b",))}), tmp_path, SILENT)
    put(workshop.results, "frcn", [60.0, 61.0])
    put(workshop.results, "ohem", [61.5, 63.5])
    for form, seconds in (("frcn", 3.0), ("ohem", 6.0)):
        cost = {"seconds": seconds, "each": [seconds], "ranking": 0.0, "memory_gb": 1.0}
        workshop.results.put(f"cost-vgg16-{form}", {**cost, "machine": MACHINE, "date": "2026-01-01"})
    made = make_report(workshop, "claims", 2, {"frcn_coco-s0": "no data given for 'coco'"})
    text = write_report(made, tmp_path, "claims").read_text()
    assert "<svg" in text
    assert "&lt;i&gt;" in text
    assert "<i>" not in text
    assert "OHEM - FRCN, mAP: <b>+2.00" in text
    assert "vgg16: time ratio: <b>2.00 (n = 1)" in text  # a ratio has no sign
    assert text.count("not enough evidence") == 13
    assert "no data given for &#39;coco&#39;" in text
    assert "http" not in text


def test_results_of_other_machines_are_taken_over_and_never_overwritten(tmp_path: Path) -> None:
    mine, theirs = Results(tmp_path / "mine/results"), Results(tmp_path / "theirs/results")
    put(mine, "ohem", [60.0])
    put(theirs, "ohem", [60.0, 61.0])
    assert mine.collect(tmp_path / "theirs") == 1
    assert mine.get("ohem-s1") == theirs.get("ohem-s1")
    put(theirs, "ohem", [50.0])
    with pytest.raises(OhemError, match="another result"):
        mine.collect(tmp_path / "theirs")
    with pytest.raises(OhemError, match="found no folder"):
        mine.collect(tmp_path / "nowhere")


# And for real, on pictures that take seconds.

SMALL = """
base: lite0
iterations: 4
log_every: 2
checkpoint_every: 2
detector:
  image: {shortest: 72, longest: 96}
  backbone: {name: lcnet_035, weights: none, strides: [16], scales: [0.01]}
  head: {pool_size: 3, channels: 8, fc: [16]}
"""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A study of one table, finished."""
    folder = tmp_path_factory.mktemp("study")
    shapes = make_shapes(folder / "data", train=10, test=6)
    (folder / "small.yaml").write_text(SMALL)
    study = open_study(
        "table4", "mini", folder, data=f"{shapes}@train", test=f"{shapes}@test", recipe=str(folder / "small.yaml")
    )
    kept = {name: study.trainings[name] for name in ("frcn", "ohem", "frcn_quarter", "ohem_quarter")}
    workshop = Workshop(replace(study, trainings=kept, rates=(0.001,)), folder / "out", SILENT, workers=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OHEM_CACHE", str(folder / "cache"))
        report, _ = reproduce(workshop, "table4", 1, Sharing())
    assert not report.not_run
    return workshop


def test_a_study_runs_once_and_leaves_a_page(workshop: Workshop) -> None:
    page = workshop.out / "table4.html"
    text, numbers = page.read_text(), json.loads(page.with_suffix(".json").read_text())
    assert "OHEM, all images" in text
    assert "not run yet" not in text
    assert [row["cells"][0]["seeds"] for row in numbers["tables"]["table4"]] == [1, 1, 1, 1]

    results = sorted(workshop.results.folder.glob("*.json"))
    before = {path.name: path.read_text() for path in results}
    jobs = plan_jobs(workshop.study, "table4", 1)
    assert progress_of(jobs, workshop).left == ()
    assert run_jobs(jobs, workshop) == {}
    assert {path.name: path.read_text() for path in results} == before


def test_a_lost_result_is_made_again_to_the_same_numbers(workshop: Workshop) -> None:
    path = workshop.results.folder / "ohem-s0.json"
    before = json.loads(path.read_text())
    path.unlink()
    jobs = plan_jobs(workshop.study, "table4", 1)
    assert [job.name for job in progress_of(jobs, workshop).left] == ["ohem-s0"]
    assert run_jobs(jobs, workshop) == {}
    after = json.loads(path.read_text())
    for key in ("plain", "loss_test", "loss_train", "lr", "settings", "fingerprint"):
        assert after[key] == before[key], key


def test_a_job_that_stood_still_does_not_lengthen_the_estimate(workshop: Workshop, tmp_path: Path) -> None:
    results = tmp_path / "out" / "results"
    results.mkdir(parents=True)
    kept = json.loads((workshop.results.folder / "frcn-s0.json").read_text())
    for name, seconds in (("frcn-s0", 10), ("frcn-s1", 11), ("frcn-s2", 7200)):
        (results / f"{name}.json").write_text(json.dumps(kept | {"job_seconds": seconds}))
    training = workshop.study.trainings["frcn"]
    jobs = [TrainJob(training, seed, "frcn", workshop.study.rates) for seed in range(5)]
    progress = progress_of(jobs, Workshop(workshop.study, tmp_path / "out", SILENT))
    assert (progress.done, progress.seconds) == (3, 22)


def test_bootstrapping_trains_each_round_on_the_last_one_s_harvest(workshop: Workshop) -> None:
    training = mini_study(workshop.study.data, workshop.study.trainings["frcn"].recipe).trainings["bootstrap"]
    job = TrainJob(replace(training, rounds=2), 0, "frcn", workshop.study.rates)
    assert run_jobs([job], workshop) == {}
    first, second = (Run.open(workshop.run_folder(f"bootstrap-s0-round{i}")) for i in (1, 2))
    assert (first.recipe().iterations, second.recipe().iterations) == (2, 2)
    assert second.recipe().init_from == first.weights_file
    assert second.sources().proposals == (str(first.folder / "harvest.json"),)


def test_results_of_other_settings_are_refused(workshop: Workshop, tmp_path: Path) -> None:
    longer = {n: replace(t, overrides=(*t.overrides, "iterations=6")) for n, t in workshop.study.trainings.items()}
    other = Workshop(replace(workshop.study, trainings=longer), workshop.out, SILENT)
    with pytest.raises(OhemError, match="as the study is now, or another --out"):
        progress_of(plan_jobs(other.study, "table4", 1), other)
    empty = replace(other, out=tmp_path)
    with pytest.raises(OhemError, match=f"{workshop.out}/results/.*as the study is now"):
        collect(empty, "table4", 1, workshop.out)
    assert not (tmp_path / "results").exists()


def test_results_of_other_data_are_refused(workshop: Workshop, tmp_path: Path) -> None:
    other = make_shapes(tmp_path / "data", train=8, test=4)
    given = {"main": replace(workshop.study.data["main"], train=(f"{other}@train",), test=(f"{other}@test",))}
    strange = Workshop(replace(workshop.study, data=given), workshop.out, SILENT, workers=0)
    with pytest.raises(
        OhemError, match=r"frcn_quarter-s0\.json: found a result of other test images or proposals than "
    ):
        run_jobs(plan_jobs(strange.study, "table4", 2), strange)

    mixed = Workshop(replace(workshop.study, rates=()), tmp_path, SILENT)
    jobs = [TrainJob(workshop.study.trainings["ohem"], seed, "ohem", ()) for seed in (0, 1)]
    for job, fingerprint in zip(jobs, ("a" * 64, "b" * 64), strict=True):
        kept = {"settings": settings_digest(job.recipe(mixed)), "test_fingerprint": fingerprint, "job_seconds": 1}
        mixed.results.put(job.name, kept)
    with pytest.raises(OhemError, match="than those of ohem-s0"):
        run_jobs(jobs, mixed)
    (mixed.results.folder / "ohem-s0.json").unlink()
    with pytest.raises(OhemError, match="found results of ohem on other test images"):
        workshop.results.collect(tmp_path)
    assert workshop.results.get("ohem-s1") is None


def test_a_finished_run_of_other_data_is_not_taken(workshop: Workshop, tmp_path: Path) -> None:
    other = make_shapes(tmp_path / "data", train=8, test=4)
    given = {"main": replace(workshop.study.data["main"], train=(f"{other}@train",))}
    strange = Workshop(replace(workshop.study, data=given), workshop.out, SILENT, workers=0)
    job = TrainJob(workshop.study.trainings["ohem"], 0, "ohem", workshop.study.rates)
    assert job.trained(workshop).weights_file.exists()
    with pytest.raises(OhemError, match="ohem-s0: found a run on other data; allowed: another --out"):
        job.trained(strange)


def test_settings_are_the_same_wherever_the_weights_lie() -> None:
    here, there = (f"init_from={folder}/weights.safetensors" for folder in ("/a", "b/c"))
    named = ["detector.backbone.weights=/a/VGG16.v2.caffemodel", "detector.backbone.weights=x/VGG16.v2.caffemodel"]
    digests = {settings_digest(load_recipe("vgg16", [w, i])) for w in named for i in (here, there)}
    assert len(digests) == 1
    assert settings_digest(load_recipe("vgg16", ["detector.backbone.weights=/a/VGG19.caffemodel", here])) not in digests


def test_test_images_are_opened_before_anything_is_trained(workshop: Workshop, tmp_path: Path) -> None:
    given = {"main": replace(workshop.study.data["main"], test=("nowhere@test",))}
    blind = Workshop(replace(workshop.study, data=given, rates=()), tmp_path, SILENT, workers=0)
    not_run = run_jobs([TrainJob(workshop.study.trainings["frcn"], 0, "frcn", ())], blind)
    assert "nowhere" in not_run["frcn-s0"]
    assert not (tmp_path / "runs").exists()


def test_every_pass_runs_where_it_is_told_to(workshop: Workshop) -> None:
    nowhere = replace(workshop, device="no such", _opened=workshop._opened)
    job = TrainJob(workshop.study.trainings["ohem"], 0, "ohem", workshop.study.rates)
    (workshop.results.folder / "ohem-s0.json").rename(workshop.out / "away.json")
    assert "no such" in run_jobs([job], nowhere)["ohem-s0"]
    (workshop.out / "away.json").rename(workshop.results.folder / "ohem-s0.json")
    assert "no such" in run_jobs([NeglectJob(job)], nowhere)["neglect-s0"]
    with pytest.raises(OhemError, match="no such"):
        job._loss(
            Run.open(nowhere.run_folder(job.name)).weights_file,
            *workshop.train_images(job.training, job.recipe(workshop)),
            nowhere,
        )


def test_the_rounds_of_bootstrapping_have_the_whole_schedule_each() -> None:
    whole = load_recipe("paper/voc07_vgg16_frcn_bg0")
    part = _round(whole, 3, None)
    assert (whole.iterations, part.iterations) == (80000, 26666)
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        factors = [each.schedule.factor(int(share * each.iterations), each.iterations) for each in (whole, part)]
        assert factors[0] == factors[1]


def test_what_a_server_judges_is_submitted_as_the_row_has_it(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        (tmp_path / f"data/VOCdevkit/{year}").mkdir(parents=True)
    study, out = full_study(tmp_path / "data"), tmp_path / "an out"
    Results(out / "results").put("ohem_m_voc12-s0", {"seed": 0, "server": "voc12"})
    table = fill(study.tables["table4"], Book(Results(out / "results"), range(1)), study)
    told = next(row.missing for row in table.rows if (row.row.training, row.row.use) == ("ohem_m_voc12", "mb"))
    assert f"ohem submit '{out}/runs/ohem_m_voc12-s0' voc12 'image.test_scales=" in told
    assert "detection.refine=" in told


def test_test_images_and_classes_want_data_of_their_own(tmp_path: Path) -> None:
    for options in ({"test": "a@test"}, {"classes": ["a"]}):
        with pytest.raises(OhemError, match="found --test or --classes; allowed beside --data"):
            open_study("table1", "mini", tmp_path, **options)  # type: ignore[arg-type]


def test_a_class_that_no_image_shows_is_not_the_one_left_out(workshop: Workshop) -> None:
    training = workshop.study.trainings["ohem"]
    images, _ = workshop.train_images(training, load_recipe(training.recipe))
    shown = replace(images, classes=("zebra", *images.classes), records=tuple(up(r) for r in images.records))
    labels = {int(label) for record in shown.records for label in record.labels}
    assert [left_out_class(shown, seed) for seed in range(len(labels) + 1)] == [*sorted(labels), min(labels)]
    with pytest.raises(OhemError, match="found no object"):
        left_out_class(replace(images, records=()), 0)


def test_nor_is_one_that_has_difficult_objects_and_crowds_alone(workshop: Workshop) -> None:
    training = workshop.study.trainings["ohem"]
    images, _ = workshop.train_images(training, load_recipe(training.recipe))
    easy = replace(
        images, records=tuple(replace(r, difficult=r.labels == 1, crowd=r.labels == 2) for r in images.records)
    )
    assert {left_out_class(easy, seed) for seed in range(3)} == {3}


def up(record: ImageRecord) -> ImageRecord:
    return replace(record, labels=record.labels + 1)


def test_what_cannot_run_is_listed_and_the_rest_goes_on(workshop: Workshop) -> None:
    coco = {n: replace(t, data="coco") if n == "frcn" else t for n, t in workshop.study.trainings.items()}
    without = Workshop(replace(workshop.study, trainings=coco), workshop.out, SILENT, workers=0)
    (workshop.results.folder / "frcn-s0.json").unlink()
    (workshop.results.folder / "ohem-s0.json").unlink()
    assert run_jobs(plan_jobs(without.study, "table4", 1), without) == {"frcn-s0": "no data given for 'coco'"}
    assert workshop.results.get("ohem-s0") is not None


def test_a_detector_that_makes_its_proposals_is_studied_without_any(tmp_path: Path) -> None:
    shapes = make_shapes(tmp_path / "data", train=6, test=4)
    splits = shapes / "ImageSets/Main"
    (splits / "trainval.txt").write_text((splits / "train.txt").read_text())
    (shapes / "selective_search").mkdir()
    for name in ("trainval", "test"):
        (shapes / "selective_search" / f"{name}.mat").write_bytes(b"not looked at")
    (tmp_path / "faster.yaml").write_text(SMALL.replace("base: lite0", "base: fasterrcnn_lite0"))
    study = open_study("rivals", "mini", tmp_path, data=str(shapes), recipe=str(tmp_path / "faster.yaml"))
    kept = {name: study.trainings[name] for name in ("frcn", "bootstrap")}
    table = replace(study.tables["rivals"], rows=tuple(r for r in study.tables["rivals"].rows if r.training in kept))
    small = replace(study, trainings=kept, tables={"rivals": table}, rates=())
    done = Workshop(small, tmp_path / "out", SILENT, workers=0)
    not_run = run_jobs(plan_jobs(small, "rivals", 1), done)
    assert list(not_run) == ["bootstrap-s0"]
    assert "found a detector with a region proposal network" in not_run["bootstrap-s0"]
    result = done.results.get("frcn-s0")
    assert result is not None
    assert result["loss_test"] > 0


def test_memory_that_runs_out_ends_its_row_alone(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(job: TrainJob, _: Workshop) -> None:
        raise torch.OutOfMemoryError("found 8 GB\nwanted 9")

    monkeypatch.setattr(TrainJob, "run", run)
    alone = Workshop(replace(workshop.study, rates=()), tmp_path, SILENT, workers=0)
    jobs = [TrainJob(workshop.study.trainings["ohem"], seed, "ohem", ()) for seed in (0, 1)]
    assert set(run_jobs(jobs, alone).values()) == {"OutOfMemoryError: found 8 GB wanted 9"}


def test_trainings_on_other_data_than_each_other_or_than_given_are_refused(workshop: Workshop, tmp_path: Path) -> None:
    one = Workshop(replace(workshop.study, rates=()), tmp_path, SILENT, workers=0)
    jobs = [TrainJob(workshop.study.trainings["ohem"], seed, "ohem", ()) for seed in (0, 1, 2)]
    tested = json.loads((workshop.results.folder / "ohem-s0.json").read_text())["test_fingerprint"]
    for job, digest in zip(jobs[:2], ("a" * 64, "b" * 64), strict=True):
        kept = {"fingerprint": digest, "test_fingerprint": tested, "settings": settings_digest(job.recipe(one))}
        one.results.put(job.name, kept | {"job_seconds": 1})
    with pytest.raises(OhemError, match=r"ohem-s1\.json: found a training on other .* than those of ohem-s0\.json"):
        run_jobs(jobs[:2], one)
    with pytest.raises(OhemError, match=r"ohem-s0\.json: found a training on other .* than those of .*data@train"):
        run_jobs(jobs[::2], one)


def test_names_that_yaml_takes_for_something_else_are_classes(tmp_path: Path) -> None:
    data = Data((str(tmp_path),), classes=("0", "no", "a: b", "#c"))
    training = mini_study({"main": data}).trainings["ohem"]
    job = TrainJob(training, 0, "ohem", ())
    assert job.recipe(Workshop(mini_study({"main": data}), tmp_path, SILENT)).data.classes == data.classes


def test_scales_are_the_rows_and_not_the_recipes(tmp_path: Path) -> None:
    own = (
        "base: mini\ndetector: {image: {train_scales: [200, 240], test_scales: [200, 240]}, detection: {refine: 0.1}}\n"
    )
    (tmp_path / "own.yaml").write_text(own)
    plain = mini_study({}, str(tmp_path / "own.yaml")).trainings["ohem"]
    detector = load_recipe(plain.recipe, plain.overrides).detector
    assert (detector.image.train_scales, detector.image.test_scales, detector.detection.refine) == ((), (), None)


def test_published_proposals_are_used_for_all_images_or_none(tmp_path: Path) -> None:
    for name in ("ImageSets/Main/trainval.txt", "ImageSets/Main/test.txt", "selective_search/test.mat"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).touch()
    with pytest.raises(
        OhemError, match=r"trainval\.mat: found no such file, but test\.mat; allowed: the proposals of both"
    ):
        open_study("table1", "mini", tmp_path, data=str(tmp_path / "mine"))
    paper_folder(tmp_path)
    mats = tmp_path / "selective_search_data"
    mats.mkdir()
    (mats / "voc_2007_trainval.mat").touch()
    assert (full_data(tmp_path)["main"].proposals, full_data(tmp_path)["main"].test_proposals) == ((), ())
    (mats / "voc_2007_test.mat").touch()
    assert full_data(tmp_path)["main"].test_proposals == (str(mats / "voc_2007_test.mat"),)
    assert full_data(tmp_path)["voc0712"].proposals == ()
    with pytest.raises(OhemError, match="gone: found no such folder; allowed: the one that ohem data filled"):
        open_study("table1", "full", tmp_path, data=str(tmp_path / "gone"))


def test_costs_of_two_machines_have_no_ratio(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for form, processor in (("frcn", "A"), ("ohem", "A"), ("loss_layer", "B")):
        cost = {
            "seconds": 1.0,
            "ranking": 0.1,
            "each": [1.0, 1.1],
            "memory_gb": 1.0,
            "machine": {"processor": processor},
        }
        results.put(f"cost-vgg16-{form}", cost)
    assert [row[3] for row in cost_rows(Book(results, range(1)), ("vgg16",))] == ["1.00", "1.00", "-"]
    c7 = next(claim for claim in CLAIMS if claim.id == "C7")
    assert ("vgg16: time, loss layer / read-only", "not run on one machine") in c7.judge(
        Book(results, range(1))
    ).measured


def test_unknown_targets_name_the_known_ones_before_any_data_are_made(tmp_path: Path) -> None:
    with pytest.raises(OhemError, match="claims, figure3, joins, lengths, rankings, rivals, table1"):
        open_study("table7", "mini", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(OhemError, match="--data DIR alone"):
        open_study("table1", "full", tmp_path)
    with pytest.raises(OhemError, match="no splits trainval and test"):
        open_study("table1", "mini", tmp_path, data=str(tmp_path))

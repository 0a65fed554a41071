"""The report of runs: charts say what the log says, the gallery is bounded, and the page stands alone in a browser."""

import html as markup
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ohem
from ohem.data.dataset import ImageRecord
from ohem.data.sources import load_dataset
from ohem.data.split import hold_out
from ohem.errors import OhemError
from ohem.evaluation.error_kinds import KINDS
from ohem.files import new_file
from ohem.opening import SILENT
from ohem.report.accuracy import error_chart
from ohem.report.gallery import Outline, Sketch, make_gallery, spread
from ohem.report.log_charts import returned_shares
from ohem.report.regions import hardest_regions
from ohem.report.report import _facts, make_report
from ohem.report.runs import open_runs
from ohem.report.svg import Bar, Line, bar_chart, layer_chart, line_chart, nice_step
from ohem.training.run import Sources
from shapes import CLASSES, make_shapes, small_recipe


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", text)]


def paths(svg: str, kind: str = "") -> list[list[float]]:
    return [numbers(d) for d in re.findall(rf'<path {kind}[^>]*?d="([^"]+)"', svg)]


def test_a_line_rises_to_the_right_and_top_of_its_chart() -> None:
    svg = str(line_chart([Line("loss", [10, 20, 30], [0.0, 1.0, 2.0], 3)], "iteration"))
    (points,) = paths(svg, 'class="line"')
    assert points == [44, 176, 197, 93, 350, 10]
    assert "var(--c3)" in svg
    assert str(line_chart([Line("empty", [], [], 0)], "x")) == ""


def test_layers_are_shares_and_fill_the_whole() -> None:
    svg = str(layer_chart([Line("a", [0, 1], [1, 6], 0), Line("b", [0, 1], [3, 2], 1)], "x"))
    first, second = paths(svg, "style")
    assert first == [44, 134.5, 350, 51.5, 350, 176, 44, 176]  # 1/4 and 3/4 of a height of 166
    assert second == [44, 10, 350, 10, 350, 51.5, 44, 134.5]


def test_a_single_point_has_one_tick_and_its_layers_fill_the_width() -> None:
    svg = str(line_chart([Line("loss", [10000.0], [10.0], 0)], "iteration"))
    assert svg.count(">10000</text>") == 1
    svg = str(layer_chart([Line("a", [10000.0], [1], 0), Line("b", [10000.0], [3], 1)], "iteration"))
    first, second = paths(svg, "style")
    assert first == [44, 134.5, 350, 134.5, 350, 176, 44, 176]
    assert second == [44, 10, 350, 10, 350, 134.5, 44, 134.5]


def test_bars_are_as_long_as_their_parts_and_tell_the_sum() -> None:
    svg = str(bar_chart([Bar("one", ((1.0, 0), (3.0, 1))), Bar("two", ((2.0, 0),))], " s"))
    widths = [float(width) for width in re.findall(r'width="([\d.]+)"', svg)]
    assert widths == [46.5, 139.5, 93]
    assert re.findall(r"[\d.]+ s", svg) == ["4 s", "2 s"]


def test_large_numbers_are_written_out() -> None:
    svg = str(bar_chart([Bar("one", ((123.4, 0),)), Bar("two", ((99.7, 0),)), Bar("three", ((0.021, 0),))], " s"))
    assert re.findall(r">([^<]+ s)<", svg) == ["123 s", "100 s", "0.021 s"]
    svg = str(line_chart([Line("loss", [0, 2_000_000], [0, 4000.0], 0)], "iteration"))
    assert ">2000000<" in svg
    assert ">4000<" in svg
    assert "e+" not in svg


def test_a_long_name_is_shortened_beside_its_bar_and_told_whole() -> None:
    svg = str(bar_chart([Bar("trained-with-hard-1", ((1.0, 0),)), Bar("short", ((1.0, 0),))], " s"))
    assert ">\u2026ned-with-hard-1<title>trained-with-hard-1</title></text>" in svg
    assert ">short</text>" in svg


def test_many_points_are_thinned_to_means() -> None:
    svg = str(line_chart([Line("loss", range(1000), [i % 2 for i in range(1000)], 0)], "x"))
    assert len(paths(svg, 'class="line"')[0]) // 2 <= 200


@pytest.mark.parametrize(("least", "step"), [(0.3, 0.5), (1, 1), (2.1, 5), (70, 100), (0, 1)])
def test_steps_are_round(least: float, step: float) -> None:
    assert nice_step(least) == pytest.approx(step)


def test_regions_come_back_when_they_trained_the_last_time_too() -> None:
    log = [
        {"iteration": 1, "mined": {"followed": [["a", [1, 2]], ["b", [1]]]}},
        {"iteration": 2, "mined": {"followed": [["a", [2, 3, 4, 5]]]}},
        {"iteration": 3},
        {"iteration": 4, "mined": {"followed": [["a", [2, 3]], ["b", [7]]]}},
    ]
    assert returned_shares(log) == ([2.0, 4.0], [25.0, 50.0])


def sketch(folder: Path, label: str = "cat", size: tuple[int, int] = (100, 50)) -> Sketch:
    path = folder / "noise.png"
    if not path.exists():
        pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    nothing = np.zeros(0)
    record = ImageRecord("noise", path, *size, nothing, nothing, nothing, nothing, nothing)  # type: ignore[arg-type]
    box = np.array([40.0, 20.0, 70.0, 40.0])
    return Sketch(record, box, (Outline(box, "region"),), "missed", label, "a title", "a detail")


def test_a_cut_out_holds_its_box_and_as_much_around_it(tmp_path: Path) -> None:
    (card,) = make_gallery([sketch(tmp_path)]).cards
    # 60 x 48 px around (55, 30), which the image's lower edge at 50 cuts to 44; enlarged to a width of 224.
    assert (card.width, card.height) == (224, 164)
    ((role, *box),) = card.outlines
    assert role == "region"
    assert np.allclose(box, np.array([15, 14, 30, 20]) * 224 / 60, atol=0.06)
    assert card.uri.startswith("data:image/jpeg;base64,")


def test_a_gallery_is_bounded_and_tells_what_it_left_out(tmp_path: Path) -> None:
    every = [sketch(tmp_path)] * 5
    size = len(make_gallery(every[:1]).cards[0].uri)
    told: list[tuple[int, int]] = []
    found = make_gallery(every, most_bytes=3 * size, progress=lambda *counts: told.append(counts))
    assert told == [(done, 5) for done in range(1, 6)]
    assert (len(found.cards), found.left_out) == (3, 2)
    assert sum(len(card.uri) for card in found.cards) <= 3 * size


def test_classes_take_turns_and_keep_their_order() -> None:
    assert spread(["a", "a", "a", "b", "a", "c"], 4) == [0, 1, 3, 5]
    assert spread(["a", "b"], 9) == [0, 1]
    assert spread([], 3) == []


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two short evaluated runs, and a class whose name is markup."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OHEM_CACHE", str(folder / "cache"))
        data = make_shapes(folder / "data", train=8, test=6)
        for file in [data / "classes.txt", *(data / "Annotations").iterdir()]:
            name = "&lt;i&gt;disc" if file.suffix == ".xml" else "<i>disc"
            file.write_text(file.read_text().replace("disc", name))
        for kind in ("random", "hard"):
            recipe = small_recipe(f"sampler={kind}", "iterations=16", "log_every=2", "all_rois_every=2")
            sources = ohem.Sources((f"{data}@train",), (f"{data}@test",))
            ohem.train(recipe, sources, folder=folder / kind, workers=0)
            ohem.evaluate(folder / kind, [f"{data}@test"], workers=0)
    return [folder / "random", folder / "hard"]


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OHEM_CACHE", str(runs[0].parent / "cache"))
        return make_report(runs, out=tmp_path_factory.mktemp("page") / "report.html", workers=0)


def test_a_page_of_two_runs_has_every_part_and_needs_no_other_file(page: Path) -> None:
    html = page.read_text()
    for part in ("learning", "mined", "accuracy", "errors", "cost", "gallery"):
        assert f'<h2 id="{part}">' in html
    for kind in ("hard: object", "false positive: class"):
        assert f'data-kind="{kind}"' in html
    assert set(re.findall('data-run="([^"]*)"', html)) == {"random", "hard"}
    links = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in links)
    assert "http" not in re.sub(r'src="data:[^"]*"', "", html)


def test_names_are_text_and_never_markup(page: Path) -> None:
    html = page.read_text()
    assert "&lt;i&gt;disc" in html
    assert "<i>disc" not in html


def test_numbers_are_those_of_the_evaluation(page: Path, runs: list[Path]) -> None:
    html = page.read_text()
    metrics = [json.loads((run / "evaluation/metrics.json").read_text())["voc07"] for run in runs]
    row = html[html.index("<td>triangle</td>") :].partition("</tr>")[0]
    values = [float(value) for value in re.findall(r'data-value="([^"]+)"', row)]
    first, second = (100 * metric["classes"][CLASSES.index("triangle")]["ap"] for metric in metrics)
    assert values == pytest.approx([first, second, second - first])


def test_a_run_that_was_not_evaluated_or_is_not_finished_has_what_there_is(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OHEM_CACHE", str(runs[0].parent / "cache"))
    shutil.copytree(runs[0], tmp_path / "one run", ignore=shutil.ignore_patterns("evaluation", "*.safetensors"))
    made = make_report([tmp_path / "one run"], workers=0)
    assert made == tmp_path / "one run/report.html"
    html = made.read_text()
    assert f"not evaluated: ohem evaluate '{tmp_path / 'one run'}' --data DATA" in markup.unescape(html)
    assert f"(ohem train --resume '{tmp_path / 'one run'}')" in markup.unescape(html)
    assert '<h2 id="learning">' in html
    assert '<h2 id="accuracy">' not in html
    assert make_report([tmp_path / "one run"], workers=0).name == "report-2.html"
    with pytest.raises(OhemError, match="found something there already"):
        make_report([tmp_path / "one run"], out=made)
    with pytest.raises(OhemError, match="allowed: runs, each once"):
        make_report([tmp_path / "one run", tmp_path / "one run"])


def test_errors_are_named_and_iterations_told_once_where_the_first_run_is_another(
    runs: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(runs[0], tmp_path / "short", ignore=shutil.ignore_patterns("evaluation"))
    recipe = tmp_path / "short/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("iterations: 16", "iterations: 12"))
    opened = open_runs([tmp_path / "short", runs[1]], (), SILENT)
    assert opened[0].measured is None
    drawing = error_chart(opened).drawing
    assert [kind for kind in KINDS if f">{kind}</text>" not in drawing] == []
    assert [name for name, _ in _facts(opened)].count("iterations") == 1


def test_hard_regions_are_of_images_that_were_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OHEM_CACHE", str(tmp_path / "cache"))
    data = make_shapes(tmp_path / "data", train=8, test=1)
    sources = Sources((f"{data}@train",))
    ohem.train(small_recipe("iterations=2", "data.holdout=0.5"), sources, folder=tmp_path / "run", workers=0)
    (run,) = open_runs([tmp_path / "run"], (), SILENT)
    regions, _ = hardest_regions(run, 0, device="cpu", workers=0, reporter=SILENT)
    trained = {record.id for record in hold_out(load_dataset(f"{data}@train"), 0.5)[0].records}
    assert {region.record.id for region in regions} == trained


def test_a_run_whose_data_are_gone_has_its_log_and_the_page_says_what_is_missing(
    runs: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(runs[0], tmp_path / "run")
    for file in ("run/run.json", "run/evaluation/metrics.json"):
        path = tmp_path / file
        path.write_text(path.read_text().replace(str(runs[0].parent / "data"), str(tmp_path / "gone")))
    html = make_report([tmp_path / "run"], workers=0).read_text()
    assert "evaluated on data that cannot be read any more" in html
    assert "No pictures." in html
    assert '<h2 id="cost">' in html
    with pytest.raises(OhemError, match="found no such file or folder"):
        make_report([tmp_path / "run"], data=f"{tmp_path / 'gone'}@test", workers=0)


def test_an_evaluation_on_data_that_changed_since_is_not_measured_again(runs: list[Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(runs[0].parent / "data", data)
    (measured,) = (one.measured for one in open_runs(runs[:1], f"{data}@test", SILENT))
    assert measured is not None
    annotation = sorted((data / "Annotations").glob("test_*.xml"))[0]
    annotation.write_text(re.sub(r"<object>.*?</object>", "", annotation.read_text(), count=1, flags=re.DOTALL))
    (again,) = open_runs(runs[:1], f"{data}@test", SILENT)
    assert again.measured is None
    assert again.why == "evaluation has other numbers, so its data have changed since: ohem evaluate again"


def test_a_page_has_its_place_from_the_beginning_and_leaves_it_when_it_fails(tmp_path: Path) -> None:
    default = tmp_path / "report.html"
    with new_file(None, default) as one, new_file(None, default) as other:
        pass
    assert (one, other) == (default, tmp_path / "report-2.html")
    (tmp_path / "link.html").symlink_to("gone")
    with pytest.raises(OhemError, match="found something there already"), new_file(tmp_path / "link.html", default):
        pass
    with pytest.raises(OhemError, match="no data"), new_file(tmp_path / "new/page.html", default) as wanted:
        raise OhemError("no data")
    assert not wanted.exists()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), new_file(tmp_path / "file/page.html", default):
        raise AssertionError
    with pytest.raises(OhemError, match=r"found no run\.json"):
        make_report(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("file", "content", "refused"),
    [
        (
            "evaluation/metrics.json",
            '{"sources": [',
            r"metrics\.json: found no readable JSON .*; allowed: an evaluation",
        ),
        ("evaluation/metrics.json", "[]", r"metrics\.json: found list; allowed: an evaluation"),
        ("evaluation/metrics.json", '{"sources": 3}', r"metrics\.json: sources: found 3; allowed: a list of texts"),
        ("log.jsonl", '{"iteration": 1}\n', r"log\.jsonl: line 1: found .*; allowed: a JSON record with its kind"),
        ("log.jsonl", '{"kind": "train", "iteration": 1, "seconds": 3}\n', r"log\.jsonl: line 1: found"),
        ("run.json", '{"format": 1}', r"run\.json: classes: found None; allowed: a list of texts"),
    ],
)
def test_damaged_files_of_a_run_are_refused_in_one_line(
    file: str, content: str, refused: str, runs: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(runs[0], tmp_path / "run")
    (tmp_path / "run" / file).write_text(content)
    with pytest.raises(OhemError, match=refused):
        make_report(tmp_path / "run", workers=0)
    assert not (tmp_path / "run/report.html").exists()


def test_what_a_log_or_run_json_lacks_is_left_out(runs: list[Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "run", ignore=shutil.ignore_patterns("evaluation", "*.safetensors"))
    (tmp_path / "run/log.jsonl").write_text('{"kind": "train", "iteration": 1}\n')
    info = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps({name: info[name] for name in ("format", "classes")}))
    html = make_report(tmp_path / "run", workers=0).read_text()
    for name in ("trained on", "peak memory, MB", "machine"):
        assert f"<tr><th>{name}</th><td>-</td></tr>" in html


def test_a_picture_that_breaks_off_is_left_out_and_the_page_says_so(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OHEM_CACHE", str(runs[0].parent / "cache"))
    shutil.copytree(runs[0], tmp_path / "run")
    shutil.copytree(runs[0].parent / "data", tmp_path / "data")
    for file in ("run/run.json", "run/evaluation/metrics.json"):
        path = tmp_path / file
        path.write_text(path.read_text().replace(str(runs[0].parent), str(tmp_path)))
    for split in ("train", "test"):
        picture = min((tmp_path / "data/JPEGImages").glob(f"{split}*"))
        picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])
    html = make_report(tmp_path / "run", workers=0).read_text()
    assert "The hardest regions of 7 of the 8 training images" in html
    assert "Left out: 1 that cannot be read, the first" in html
    assert re.search(r"Left out: \S*test_\S*: found", html)
    assert 'data-kind="hard: object"' in html


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_a_browser_columns_sort_and_cards_filter(page: Path, tmp_path: Path) -> None:
    play = """<script>
    const click = (table, column) => document.querySelectorAll("table.sortable")[table].tHead.rows[0].cells[column].click()
    const names = table => [...document.querySelectorAll("table.sortable")[table].tBodies[0].rows].map(row => row.cells[0].textContent)
    const shown = () => [...document.querySelectorAll(".card:not([hidden])")]
    const found = {}
    click(0, 0); found.up = names(0)
    click(0, 0); found.down = names(0)
    click(0, 1); found.objects = [...document.querySelectorAll("table.sortable")[0].tBodies[0].rows].map(row => +row.cells[1].textContent)
    const kind = document.querySelector("select[data-filter=kind]")
    found.all = shown().length
    kind.value = "hard: object"; kind.dispatchEvent(new Event("change"))
    found.hard = shown().map(card => card.dataset.kind)
    found.told = +document.querySelector("output").textContent
    found.wide = document.documentElement.scrollWidth
    document.body.innerHTML = "<pre id=found></pre>"
    document.getElementById("found").textContent = JSON.stringify(found)
    </script>"""
    copy = tmp_path / "play.html"
    copy.write_text(page.read_text() + play)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}"]
    command = [str(CHROMIUM), *options, "--window-size=500,900", "--dump-dom", copy.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    text = markup.unescape(dom.partition('<pre id="found">')[2].partition("</pre>")[0])
    found: dict[str, Any] = json.loads(text)
    assert found["up"] == sorted(found["up"], key=lambda name: name.strip("<"))
    assert found["down"] == found["up"][::-1]
    assert found["objects"] == sorted(found["objects"], reverse=True)
    assert 0 < len(found["hard"]) < found["all"]
    assert set(found["hard"]) == {"hard: object"}
    assert found["told"] == len(found["hard"])
    assert found["wide"] <= 500

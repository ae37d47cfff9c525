from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessera.evaluation.scores import (
    LINEAR_PROBE,
    RETRIEVAL,
    SUGARCREPE,
    WINOGROUND,
    ZERO_SHOT,
    Score,
)
from tessera.report.charts import Line, histogram, line_chart
from tessera.report.numbers import decimal, duration, percent, shorten
from tessera.report.page import data_uri
from tessera.report.pictures import GalleryItem, cells_path
from tessera.report.run import render_report, write_report
from tessera.report.run_data import ReportData, RetrievalExample
from tessera.report.run_words import against_chance, headlines, summary
from tessera.report.series import StepSeries, data_wait, pairs_per_s, shown_range, thin, trend
from tests.chromium import Browser

SCRIPT = "<script>alert(1)</script>"
SECTIONS = {
    "learning": "Learning",
    "seen": "What the model saw",
    "evaluation": "Evaluation",
    "retrieval": "Retrieval examples",
    "time": "Where the time went",
    "data": "Data",
    "configuration": "Configuration",
    "repeat": "How to repeat it",
}
VOID = {"br", "hr", "img", "link", "meta"}


class Page(HTMLParser):
    """Walks a page, holding every tag to the one that closes it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def values(self, *names: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.seen for name in names if name in attrs]


def picture(side: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def gallery_item(caption: str = "a photo of a dog", side: int = 64) -> GalleryItem:
    cluster = np.full(16, -1)
    cluster[[0, 1, 4]], cluster[[10, 11]] = 0, 1
    return GalleryItem(
        key="000012",
        caption=caption,
        crop=picture(side),
        visible=cluster < 0,
        anchors=np.array([0, 10]),
        cluster=cluster,
        grid=(4, 4),
        tokens=["<start>", "a", "dog", "<end>"],
    )


def steps(loss: np.ndarray | None = None, num_steps: int = 100) -> StepSeries:
    step = np.arange(1, num_steps + 1)
    return StepSeries(
        step=step,
        samples=step * 32,
        loss=np.linspace(3.5, 1.5, num_steps) if loss is None else loss,
        lr=np.linspace(1e-3, 0, num_steps),
        logit_scale=np.linspace(14, 20, num_steps),
        step_s=np.full(num_steps, 0.5),
        data_wait_s=np.full(num_steps, 0.01),
        evaluations=[(1600, "top-1", 0.1), (3200, "top-1", 0.2)],
    )


def row(dataset: str, task: str, metric: str, value: float, chance: float | None, n: int) -> Score:
    return Score(dataset=dataset, task=task, metric=metric, value=value, chance=chance, n=n)


def labelled(dataset: str) -> list[Score]:
    return [
        row(dataset, ZERO_SHOT, metric, value, chance, 500)
        for metric, value, chance in (
            ("acc1", 0.42, 0.1),
            ("acc5", 0.81, 0.5),
            ("mean_per_class_recall", 0.4, 0.1),
            ("num_prompts", 80, None),
        )
    ]


def pairs(dataset: str) -> list[Score]:
    recalls = {1: (0.11, 0.1, 0.002), 5: (0.33, 0.3, 0.01), 10: (0.55, 0.5, 0.02)}
    return [
        row(dataset, RETRIEVAL, f"{direction}_retrieval_recall@{k}", value, chance, 500)
        for k, (image, text, chance) in recalls.items()
        for direction, value in (("image", image), ("text", text))
    ]


def full(caption: str = "a photo of a dog") -> ReportData:
    pictures = [(picture(seed=k), 0.3 - k / 100, k == 2) for k in range(5)]
    texts = [(f"text {k} {caption}", 0.3 - k / 100, False) for k in range(5)]
    return ReportData(
        title="A run",
        recipe="demo",
        command="python train.py demo --training.seed 3",
        created="2025-11-22T15:37:12+00:00",
        status="finished",
        config={"training": {"lr": 1e-3, "betas": (0.9, 0.98)}, "mask": {"mask_ratio": 0.5}},
        model="ViT-S-8",
        dataset="shapes",
        device="2 CPU cores",
        facts=[("Peak memory", "1.2 GiB")],
        steps=steps(),
        loss_at_chance=math.log(32),
        time_split=[("forward", 20.0), ("backward", 29.0)],
        data_facts=[("Rejected: no caption", "12")],
        gallery=[gallery_item(caption), gallery_item(caption, side=224)],
        mask_ratios=np.linspace(0.3, 0.7, 200),
        retrieval=[
            RetrievalExample(kind="text_to_image", query_text=caption, results=pictures),
            RetrievalExample(
                kind="image_to_text", query_image=picture(), results=texts, answer=caption
            ),
        ],
        scores=[*labelled("shapes-dev"), *pairs("shapes-dev")],
        confusions=[("square", "diamond", 4), ("disc", "ring", 9)],
    )


def empty(status: str = "stopped at step 0 of 500") -> ReportData:
    return ReportData(title="", recipe="demo", command="", created="", status=status, config={})


def test_page_has_every_section_reachable_from_the_navigation() -> None:
    page = Page(render_report(full()))
    links = {attrs.get("href") for name, attrs in page.seen if name == "a"}
    assert {attrs.get("id") for name, attrs in page.seen if name == "section"} == set(SECTIONS)
    assert {f"#{name}" for name in SECTIONS} <= links
    assert all(title in page.text for title in SECTIONS.values())


def test_page_shows_the_numbers_it_was_given() -> None:
    text = Page(render_report(full())).text
    for shown in ("42.0%", "4.2 times chance (10.0%)", "33.0%", "training.betas"):
        assert shown in text
    assert "11 of 16 seen" in text
    assert "python train.py demo --training.seed 3" in text
    assert "Rejected: no caption" in text
    assert "2025-11-22 15:37 UTC" in text


def test_text_from_outside_stays_text_wherever_it_appears() -> None:
    data = full(SCRIPT)
    item = dataclasses.replace(data.gallery[0], key=f'"><img src=x>{SCRIPT}', tokens=[SCRIPT])
    hostile = dataclasses.replace(
        data,
        title=SCRIPT,
        recipe=SCRIPT,
        command=SCRIPT,
        created=SCRIPT,
        status=SCRIPT,
        model=SCRIPT,
        dataset=SCRIPT,
        device=SCRIPT,
        config={SCRIPT: SCRIPT},
        facts=[(SCRIPT, SCRIPT)],
        data_facts=[(SCRIPT, SCRIPT)],
        time_split=[(SCRIPT, 1.0)],
        gallery=[item],
        confusions=[(SCRIPT, SCRIPT, 1)],
        steps=dataclasses.replace(data.steps, evaluations=[(1, f'"{SCRIPT}', 0.1)]),
        scores=[dataclasses.replace(score, dataset=SCRIPT) for score in with_probes().scores],
    )
    html = render_report(hostile)
    page = Page(html)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert {name for name, _ in page.seen}.isdisjoint({"script", "iframe", "object", "embed"})
    assert not [name for _, attrs in page.seen for name in attrs if name.startswith("on")]
    assert "x" not in page.values("src")


def test_nothing_is_loaded_from_outside_the_file() -> None:
    html = render_report(full("see https://example.com/a.png"))
    page = Page(html)
    addresses = page.values("src", "href", "srcset", "action", "poster", "data")
    assert addresses
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    style = html.split("<style>")[1].split("</style>")[0]
    assert not re.search(r"url\(|@import|https?:", style)
    assert "default-src 'none'" in "".join(page.values("content"))


def test_references_within_the_page_have_their_target() -> None:
    page = Page(render_report(full()))
    names = page.values("id")
    assert len(names) == len(set(names))
    assert {href[1:] for href in page.values("href") if href.startswith("#")} <= set(names)


def test_embedded_pictures_decode() -> None:
    page = Page(render_report(full()))
    uris = [uri for uri in page.values("src", "href") if ";base64," in uri]
    assert len(uris) == 2 + 5 + 1
    for uri in uris:
        kind, content = uri.removeprefix("data:image/").split(";base64,")
        image = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
        image.load()
        assert (image.format or "").lower() == kind


def test_same_data_gives_the_same_page() -> None:
    assert render_report(full()) == render_report(full())


def test_a_dozen_images_stay_below_three_megabytes() -> None:
    # Noise is the worst case for any codec.
    data = full()
    item = gallery_item(side=224)
    noisy = dataclasses.replace(data, gallery=[item] * 12, retrieval=list(data.retrieval) * 4)
    assert len(render_report(noisy)) < 3_000_000


@pytest.mark.parametrize("status", ["finished", "stopped at step 0 of 500"])
def test_a_run_without_anything_says_what_is_missing(status: str) -> None:
    text = Page(render_report(empty(status))).text
    assert "logged no training step" in text
    assert "not evaluated" in text
    assert "No images were kept" in text
    assert status in text


def test_each_part_may_be_missing_on_its_own() -> None:
    data = full()
    bare = empty()
    for name in (field.name for field in dataclasses.fields(ReportData)):
        Page(render_report(dataclasses.replace(data, **{name: getattr(bare, name)})))
        Page(render_report(dataclasses.replace(bare, **{name: getattr(data, name)})))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, 1e300])
@pytest.mark.parametrize("num_steps", [1, 700])
def test_no_number_in_the_log_breaks_the_page(value: float, num_steps: int) -> None:
    whole = steps(num_steps=num_steps)
    names = ("step", "samples", "loss", "lr", "logit_scale", "step_s", "data_wait_s")
    for place in (slice(None), slice(-1, None)):
        columns: dict[str, Any] = {n: np.array(getattr(whole, n), dtype=float) for n in names}
        for changed in (names, ("samples",)):
            series = dict(columns)
            for name in changed:
                series[name] = columns[name].copy()
                series[name][place] = value
            data = dataclasses.replace(empty(), steps=StepSeries(**series), loss_at_chance=value)
            page = Page(render_report(data))
            drawn = page.values("style", "d", "x", "y", "y1", "width", "height", "viewbox")
            assert not [text for text in drawn if "nan" in text or "inf" in text]


def test_a_loss_that_breaks_is_told_with_its_step() -> None:
    loss = np.linspace(3, 2, 100)
    loss[80:] = np.nan
    data = dataclasses.replace(full(), steps=steps(loss))
    text = Page(render_report(data)).text
    assert "not a finite number from step 81 on" in text
    assert "20 of 100 log lines hold no finite loss, the first at step 81" in text
    assert "diverged" in [headline.value for headline in headlines(data)]


def test_a_stopped_run_says_so_in_its_summary() -> None:
    assert "stopped at step 7 of 9" in summary(
        dataclasses.replace(full(), status="stopped at step 7 of 9")
    )


def test_retrieval_marks_right_answers_by_more_than_colour() -> None:
    text = Page(render_report(full())).text
    assert "\N{CHECK MARK} right at rank 3" in text
    assert text.count("\N{CHECK MARK} right") == 2
    assert "not among the first 5" in text
    assert "The right answer:" in text


def test_mistakes_are_listed_most_frequent_first() -> None:
    text = Page(render_report(full())).text
    assert text.index("disc \N{RIGHTWARDS ARROW} ring") < text.index("square \N{RIGHTWARDS ARROW}")


def test_without_clusters_there_is_no_cluster_panel() -> None:
    item = dataclasses.replace(
        gallery_item(), anchors=np.zeros(0, dtype=int), cluster=np.full(16, -1)
    )
    text = Page(render_report(dataclasses.replace(full(), gallery=[item]))).text
    assert "11 of 16 seen" in text
    assert "clusters" not in text


def test_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "report.html"
    write_report(empty(), path)
    write_report(dataclasses.replace(full(), title="lone \udcff surrogate \x00"), path)
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]
    assert "lone \N{REPLACEMENT CHARACTER} surrogate" in path.read_text(encoding="utf-8")


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        StepSeries(step=np.arange(3))


@pytest.mark.parametrize(
    "change",
    [
        {"crop": np.zeros((8, 8, 3), dtype=np.float32)},
        {"visible": np.ones(15, dtype=bool)},
        {"anchors": np.array([16, 0])},
        {"cluster": np.full(16, 2)},
        {"cluster": np.full(16, -2)},
    ],
)
def test_gallery_items_that_do_not_fit_name_their_key(change: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="000012"):
        dataclasses.replace(gallery_item(), **change)


def test_retrieval_example_needs_results_of_the_other_kind() -> None:
    with pytest.raises(ValueError, match="text_to_image"):
        RetrievalExample(kind="text_to_image", query_text="q", results=[("text", 0.1, True)])
    with pytest.raises(ValueError, match="image_to_text"):
        RetrievalExample(kind="image_to_text", results=[])


def test_trend_ignores_a_spike_and_breaks_where_values_are_missing() -> None:
    values = np.ones(200)
    values[50] = 1e6
    values[100:150] = np.nan
    x, line = trend(np.arange(200), values, window=9)
    assert np.all(line[(x < 95) | (x > 155)] == 1)
    assert np.all(np.isnan(line[(x > 105) & (x < 145)]))


def test_thin_keeps_the_extremes_and_the_end() -> None:
    y = np.random.default_rng(0).normal(size=10_000)
    y[1234], y[8765] = 50.0, -50.0
    x, kept = thin(np.arange(10_000), y, most=100)
    assert len(kept) <= 101
    assert kept.max() == 50
    assert kept.min() == -50
    assert x[-1] == 9999
    assert np.all(np.diff(x) > 0)
    np.testing.assert_array_equal(kept, y[x.astype(int)])


def test_range_leaves_out_rare_outliers_only() -> None:
    values = np.linspace(1, 2, 1000)
    assert shown_range(values) == (1.0, 2.0)
    values[500] = 1e5
    assert shown_range(values)[1] < 3
    assert shown_range(np.array([np.nan])) == (0.0, 1.0)


def test_rates_come_from_the_slope_of_the_log() -> None:
    every_tenth = dataclasses.replace(steps(), step=np.arange(1, 101) * 10)
    assert pairs_per_s(steps()) == pytest.approx(64)
    assert pairs_per_s(every_tenth) == pytest.approx(6.4)
    assert data_wait(steps()) == pytest.approx(0.02)
    assert math.isnan(pairs_per_s(StepSeries()))


def test_cells_path_covers_exactly_the_chosen_cells() -> None:
    chosen = np.random.default_rng(1).random(35) < 0.5
    covered = np.zeros((5, 7), dtype=int)
    for left, top, width in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\3z", cells_path(chosen, (5, 7))):
        covered[int(top), int(left) : int(left) + int(width)] += 1
    np.testing.assert_array_equal(covered, chosen.reshape(5, 7))


def test_panels_blank_the_hidden_patches_and_colour_the_clusters() -> None:
    item = gallery_item()
    page = Page(render_report(dataclasses.replace(empty(), gallery=[item])))
    paths = {attrs["class"]: attrs["d"] for name, attrs in page.seen if name == "path"}
    assert paths["hidden"] == cells_path(~item.visible, item.grid)
    assert paths["tint c0"] == cells_path(item.cluster == 0, item.grid)
    assert paths["tint c1"] == cells_path(item.cluster == 1, item.grid)
    assert paths["anchor"] == "M0 0h1v1h-1zM2 2h1v1h-1z"


def test_lines_break_at_missing_values() -> None:
    line = Line(x=np.arange(5), y=np.array([0, 1, np.nan, 1, 0]))
    chart = line_chart("a", "Loss", "It fell.", [line], y_range=(0, 1))
    (path,) = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--accent\)', str(chart.svg))
    assert path.count("M") == 2
    assert path.count("L") == 2
    assert 'aria-label="Loss. It fell."' in str(chart.svg)


def test_charts_take_the_pages_colours_and_font() -> None:
    lines = [Line(x=np.arange(3), y=np.arange(3), colour="second")]
    svg = str(line_chart("a", "t", "n", lines, y_range=(0, 2), reference=(1, "</svg>$")).svg)
    assert not re.search(r"#[0-9a-f]{6}\b|font-family|<style", svg)
    assert "&lt;/svg&gt;$" in svg
    ids = re.findall(r' id="([^"]*)"', svg)
    assert all(each.startswith("a-") for each in ids)
    assert set(re.findall(r"#([\w.-]+)", svg)) == set(ids)


def test_what_is_no_chart_is_told_in_words() -> None:
    one = line_chart("a", "Top-1", "n", [Line(x=np.array([5.0]), y=np.array([0.25]))],
                     y_range=(0, 1), share=True)  # fmt: skip
    assert (one.svg, one.value) == (None, "25.0%")
    bins = histogram("b", "Sides", "n", np.array([1.0, 2, 4, 8]), np.array([0, 1000, 0]), log=True)
    assert bins.svg is None
    assert bins.note == "All 1,000 lie from 2 to 4. n"
    assert histogram("c", "Sides", "n", np.array([1, 2]), np.array([0])).svg is None


def test_large_pictures_are_shrunk_and_small_ones_kept_exactly() -> None:
    small = picture(64)
    content = data_uri(small).removeprefix("data:image/png;base64,")
    kept = np.array(Image.open(io.BytesIO(base64.b64decode(content))))
    np.testing.assert_array_equal(kept, small)
    content = data_uri(picture(500), 128).removeprefix("data:image/jpeg;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (128, 128)


def test_chance_is_told_apart_from_luck() -> None:
    assert against_chance(0.121, 0.1, 372) == "no different from chance (10.0%)"
    assert against_chance(0.42, 0.1, 500) == "4.2 times chance (10.0%)"
    assert against_chance(0.01, 0.1, 500) == "below chance (10.0%)"
    assert against_chance(0.4, math.nan, 500) == "chance not known"


def test_numbers_read_well() -> None:
    shares = (0, 0.00002, 0.0099, 0.381, 1, math.nan)
    assert [percent(share) for share in shares] == [
        *("0%", "0.002%", "0.99%", "38.1%", "100%", "not measured")
    ]
    assert [duration(s) for s in (0.0123, 59.94, 61, 7500)] == [
        *("12.3 ms", "59.9 s", "1 min 1 s", "2 h 05 min")
    ]
    values = (0, 5e-4, 1.98765, 12345, 1e7, math.inf)
    assert [decimal(value) for value in values] == [
        "0",
        "5e-4",
        "1.988",
        "12,345",
        "1e7",
        "infinite",
    ]
    assert shorten("one two three", 9) == "one two\N{HORIZONTAL ELLIPSIS}"


def with_probes() -> ReportData:
    chance = 0.1
    probe = [
        row("flowers", LINEAR_PROBE, "lp_acc1", 0.456, chance, 321),
        row("flowers", LINEAR_PROBE, "lp_acc5", 0.9, 0.5, 321),
        row("flowers", LINEAR_PROBE, "lp_mean_per_class_recall", 0.4, chance, 321),
        row("flowers", LINEAR_PROBE, "weight_decay", 0.01, None, 1234),
    ]
    few = [row("pets", LINEAR_PROBE, "lp_acc1_4_shot", draw, 0.1, 99) for draw in (0.2, 0.3, 0.4)]
    sugar = [
        row(place, SUGARCREPE, metric, value, 0.5, n)
        for place, metric, value, n in (
            ("crepe/add_att", "acc", 0.61, 692),
            ("crepe/replace_obj", "acc", 0.87, 1652),
            ("crepe", "acc_add", 0.61, 692),
            ("crepe", "acc_replace", 0.87, 1652),
            ("crepe", "acc_macro", 0.74, 2344),
            ("crepe", "acc_micro", 0.793, 2344),
        )
    ]
    ground = [
        row("wino", WINOGROUND, metric, value, guess, 400)
        for metric, value, guess in (
            ("text_acc", 0.31, 1 / 4),
            ("image_acc", 0.11, 1 / 4),
            ("acc", 0.08, 1 / 6),
        )
    ]
    trained = [dataclasses.replace(score, train="flowers-train") for score in probe]
    data = full()
    return dataclasses.replace(data, scores=[*data.scores, *trained, *few, *sugar, *ground])


def test_probes_and_compositional_scores_have_their_tables() -> None:
    text = Page(render_report(with_probes())).text
    for shown in ("45.6%", "1,234 of flowers-train", "add att", "692", "74.0%", "79.3%", "31.0%"):
        assert shown in text
    assert "30.0% 20.0% 40.0% 3 10.0%" in " ".join(text.split())
    assert "Linear probe" not in Page(render_report(full())).text


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1200, False)])
@pytest.mark.parametrize(
    "data",
    [full("long " * 200 + "A" * 400), with_probes(), empty()],
    ids=["full", "probes", "empty"],
)
def test_the_page_is_readable_in_a_browser(
    data: ReportData, width: int, dark: bool, browser: Browser, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    write_report(data, page)
    seen = browser.look(page.as_uri(), width=width, dark=dark)
    assert seen.complaints == []
    assert (seen.wider, seen.empty) == (0, 0)
    assert (seen.images > 0) == bool(data.retrieval)
    assert (seen.drawn > 20) == bool(data.gallery)
    assert seen.paper == ("rgb(23, 23, 21)" if dark else "rgb(251, 250, 247)")
    assert data.title in seen.text

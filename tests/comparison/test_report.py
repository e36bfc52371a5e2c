"""The report as a browser sees it, and as JSON."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diver_trt.bundle import Bundle
from diver_trt.cli.console import print_json
from diver_trt.comparison.checks import Check
from diver_trt.comparison.facts import environment, result_facts
from diver_trt.comparison.figure_text import show_check, show_decibels, show_figure, show_where
from diver_trt.comparison.lineup import Absent
from diver_trt.comparison.plots import blocks_plot
from diver_trt.comparison.report import render
from diver_trt.comparison.result import Result
from diver_trt.comparison.samples import worst_samples
from diver_trt.comparison.tolerances import Limit
from diver_trt.recipe import Recipe
from diver_trt.svg_plot import COLOURS
from tests.browser import browse, needs_chromium
from tests.comparison.conftest import Held
from tests.comparison.faults import plant, scale_block_4

ABSENT = Absent("rtx fp32", "backend rtx needs `tensorrt_rtx` & <a GPU>", asked=False)


@pytest.fixture(scope="module")
def result(
    few: Held, digits: Bundle, digits_fp16: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    """The digits in both precisions, and once with a planted fault."""
    wrong = plant(
        digits,
        tmp_path_factory.mktemp("faults") / "planted",
        {"denoiser": scale_block_4(1.2)},
    )
    named = zip(
        ("onnx fp32", "onnx fp16", "onnx planted"), (digits, digits_fp16, wrong), strict=True
    )
    return Result(
        reference="torch fp32",
        reference_images=tuple(few.reference.recording.images),
        comparisons=tuple(replace(few(bundle), name=name) for name, bundle in named),
        absent=(ABSENT,),
        inputs=few.inputs,
        recipe=Recipe(),
        seed=0,
        bundles=(digits, digits_fp16, wrong),
        model="dit-digits",
    )


@pytest.fixture(scope="module")
def page(result: Result) -> str:
    return render(result)


MEASURE = """<script>addEventListener("load", () => {
  document.documentElement.dataset.seen = JSON.stringify({
    pictures: [...document.images].map(picture => picture.naturalWidth),
    plots: [...document.querySelectorAll("figure svg")].map(
      plot => [plot.getBoundingClientRect().width, plot.querySelectorAll("path").length]),
    overflow: document.documentElement.scrollWidth - innerWidth,
    heading: document.querySelector("h1").innerText,
  });
});</script>"""


@needs_chromium
@pytest.mark.parametrize("width", [1180, 500])
def test_the_report_renders(page: str, tmp_path: Path, width: int) -> None:
    (tmp_path / "report.html").write_text(page + MEASURE, encoding="utf-8")
    document = browse(tmp_path / "report.html", "--dump-dom", width=width)
    attribute = re.search(r'data-seen="([^"]*)"', document)
    assert attribute is not None
    seen = json.loads(attribute[1].replace("&quot;", '"'))
    assert seen["pictures"] == [32] * (3 * 3 * 4)
    assert len(seen["plots"]) == 3
    assert all(drawn > 0.6 * min(width, 1100) and paths > 20 for drawn, paths in seen["plots"])
    assert seen["overflow"] <= 0
    assert "onnx planted leaves torch fp32 by more than the tolerances allow" in seen["heading"]


@needs_chromium
@pytest.mark.parametrize(("scheme", "lightness"), [(1, 255), (0, 0)], ids=["light", "dark"])
def test_the_report_is_legible_in_light_and_in_dark(
    page: str, tmp_path: Path, scheme: int, lightness: int
) -> None:
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    shot = tmp_path / "report.png"
    browse(
        tmp_path / "report.html",
        f"--screenshot={shot}",
        f"--blink-settings=preferredColorScheme={scheme}",
    )
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert abs(np.median(pixels) - lightness) < 40
    for colour in COLOURS[:3]:  # every engine is drawn
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(axis=2) < 12).sum() > 200
    ink = np.abs(pixels - (255 - lightness)).max(axis=2) < 60
    assert ink.mean() > 0.005


def test_the_report_needs_no_network(page: str) -> None:
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    assert "@import" not in page
    assert "<script" not in page
    assert not re.search(r"url\((?!#)", page)


def test_the_report_contains_causes_limits_and_versions(page: str) -> None:
    for text in (
        "block 4, MLP is the first to diverge from the reference",
        "worst in step",
        "block 4",
        "limit for fp16",
        "SHA-256",
        "float32 sums in another order",
        "onnxruntime",
    ):
        assert text in page, text


def test_untrusted_text_is_escaped(page: str) -> None:
    assert "backend rtx needs <code>tensorrt_rtx</code> &amp; &lt;a GPU&gt;" in page


def test_a_dollar_in_a_name_is_not_a_formula(result: Result) -> None:
    named = replace(result, comparisons=(replace(result.comparisons[0], name="onnx fp32 (a$b$c)"),))
    plots = "".join(re.findall(r"<figure>(.*?)</figure>", render(named), flags=re.DOTALL))
    assert "onnx fp32 (a$b$c)" in plots


def test_blocks_are_labelled_where_their_first_place_is(result: Result) -> None:
    figures = result.comparisons[0].figures
    places = [
        *(f"{block}, {part}" for block in ("down 1.1", "middle", "up 1.1") for part in "abc"),
        "final layer",
    ]
    stages = tuple(replace(figures.stages[0], place=place) for place in places)
    plot = blocks_plot([replace(result.comparisons[0], figures=replace(figures, stages=stages))])
    ticks = re.findall(
        r'id="xtick_\d+".*?<use [^>]*x="([\d.]+)".*?>([^<>]+)</text>', plot, flags=re.DOTALL
    )
    assert [label for _, label in ticks] == ["down 1.1", "middle", "up 1.1", "final layer"]
    gaps = np.diff([float(x) for x, _ in ticks])
    assert gaps == pytest.approx([gaps.mean()] * 3)


def test_an_engine_on_the_reference_s_graph_has_no_blocks(result: Result) -> None:
    without = [
        replace(one, figures=replace(one.figures, stages=())) for one in result.comparisons[:2]
    ]
    page = render(replace(result, comparisons=(without[0], result.comparisons[1])))
    assert page.count("<figure>") == 3
    assert page.count("runs the reference's own graph") == 1
    page = render(replace(result, comparisons=tuple(without)))
    assert page.count("<figure>") == 2
    assert page.count("runs the reference's own graph") == 2


def test_the_plots_take_the_page_s_own_colour(page: str) -> None:
    assert "#123456" not in page
    assert page.count("currentColor") > 50


def test_the_same_result_gives_the_same_page(result: Result, page: str) -> None:
    assert render(result) == page


def test_the_worst_images_come_first(result: Result) -> None:
    planted = result.comparisons[2]
    shown = worst_samples(planted, result)
    ratios = sorted(image.psnr_db for image in planted.figures.images)
    assert [sample.difference.psnr_db for sample in shown] == ratios[:3]
    assert all(sample.factor * sample.difference.max_levels <= 255 for sample in shown)


def test_json_is_complete(result: Result, capsys: pytest.CaptureFixture[str]) -> None:
    print_json(**result_facts(result))
    facts = json.loads(capsys.readouterr().out)
    assert facts["passed"] is False
    assert [engine["verdict"] for engine in facts["engines"]] == ["passed", "passed", "failed"]
    assert len(facts["engines"][0]["steps"]) == 50
    assert set(facts["engines"][0]["images"]) == set(result.inputs.keys)
    assert (
        facts["engines"][0]["images"]["00000/00000"]["psnr_db"] is None
        or facts["engines"][0]["images"]["00000/00000"]["psnr_db"] > 60
    )
    assert facts["not_compared"] == [{"name": "rtx fp32", "reason": ABSENT.reason, "asked": False}]
    assert facts["environment"]["numpy"] == np.__version__


@pytest.mark.parametrize(
    ("change", "passed", "headline"),
    [
        ({}, False, "onnx planted leaves torch fp32 by more than the tolerances allow"),
        ({"comparisons": 2}, True, "onnx fp32 and onnx fp16 stay with torch fp32"),
        (
            {"comparisons": 2, "absent": (replace(ABSENT, asked=True),)},
            False,
            "onnx fp32 and onnx fp16 stay with torch fp32; rtx fp32 could not be compared",
        ),
    ],
)
def test_the_verdict_of_the_whole(
    result: Result, change: dict[str, Any], passed: bool, headline: str
) -> None:
    count = change.pop("comparisons", 3)
    found = replace(result, comparisons=result.comparisons[:count], **change)
    assert (found.passed, found.headline) == (passed, headline)


def test_a_comparison_of_no_engine_does_not_pass(result: Result) -> None:
    found = replace(result, comparisons=(), absent=(replace(ABSENT, asked=True),))
    assert (found.passed, found.headline) == (False, "rtx fp32 could not be compared")
    assert "rtx fp32 could not be compared" in render(found)


def test_a_comparison_without_a_verdict_does_not_pass(result: Result) -> None:
    found = replace(result, comparisons=(replace(result.comparisons[0], checks=()),))
    assert not found.passed
    assert "nothing was judged" in found.headline


def test_the_environment_names_no_machine() -> None:
    import platform

    assert platform.node() not in " ".join(environment().values()).split()


def test_the_environment_counts_the_cores_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diver_trt.comparison.facts.available_cores", lambda: 3)
    assert environment()["machine"].endswith(", 3 cores")


def test_figures_as_text() -> None:
    texts = {0.0: "0", 2.56e-4: "2.6e-04", 0.25: "0.25", 1.0: "1", 12345.0: "1.2e+04"}
    assert {figure: show_figure(figure) for figure in texts} == texts
    assert [show_figure(figure) for figure in (math.inf, math.nan)] == ["not finite"] * 2
    assert [show_decibels(figure) for figure in (41.26, math.inf)] == ["41.3 dB", "no difference"]


def test_a_check_names_its_unit_once_and_no_place_where_nothing_differs() -> None:
    most, least = Limit(0.1, "why"), Limit(40, "why", at_least=True)
    apart = Check("block by block", "relative L2", 0.25, most, "worst at block 1")
    assert (show_check(apart), show_where(apart)) == ("0.25", "worst at block 1")
    assert show_where(replace(apart, figure=0.0)) == ""
    image = Check("final images", "lowest PSNR in dB", 41.26, least, "image 00000/00000")
    assert (show_check(image), show_where(image)) == ("41.3", "image 00000/00000")
    equal = replace(image, figure=math.inf)
    assert (show_check(equal), show_where(equal)) == ("no difference", "")

"""The gallery as a browser shows it, opened from the disk and moved away from its input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diver_trt.manifest import open_recovered
from diver_trt.recipe import Recipe
from diver_trt.records import Manifest
from diver_trt.recovered.gallery.contents import Contents
from diver_trt.recovered.gallery.files import Stamp
from diver_trt.recovered.gallery.page import View, render
from diver_trt.recovered.gallery.sheets import Sheet
from tests.browser import browse, needs_chromium, seen
from tests.recovered.finished import Finished, distilled, finished, flat

pytestmark = needs_chromium

STATE = """
    const pairs = [...document.querySelectorAll(".pair")];
    // Images further down are not loaded before the page is scrolled.
    const images = [...document.images].filter(
      (image) => image.closest(".cell").getBoundingClientRect().top < innerHeight);
    for (const image of images) {
      while (!image.complete) await new Promise((resolve) => setTimeout(resolve, 10));
    }
    return {
      count: document.getElementById("count").value,
      keys: pairs.map((pair) => pair.querySelector("b").textContent),
      headings: [...document.querySelectorAll("#pairs h2")].map((one) => one.firstChild.data),
      numbers: [...document.querySelectorAll("#pairs h2 small")].map((one) => one.textContent),
      loaded: images.map((image) => image.naturalWidth),
      centres: [...document.querySelectorAll("#pairs .cell")].map((cell) => {
        const box = cell.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2].map(Math.round);
      }),
      missing: [...document.querySelectorAll("#pairs .missing")].map((one) => one.textContent),
      viewer: document.getElementById("viewer").open
        && document.getElementById("viewer-title").textContent,
      overflow: document.documentElement.scrollWidth - innerWidth,
      pwned: globalThis.pwned ?? null,
    };
"""


def moved(dataset: Finished, to: Path) -> Path:
    """Write a gallery, move its folder, delete the distilled images, and return the page."""
    page = dataset.write_gallery()
    shutil.move(page.parent, to)
    shutil.rmtree(dataset.job.dataset.root)
    return to / page.name


@pytest.mark.parametrize(
    ("side", "width", "count"), [(16, 1180, 100), (130, 500, 23)], ids=["small", "large"]
)
def test_every_distilled_image_is_beside_its_recovered_one(
    tmp_path: Path, side: int, width: int, count: int
) -> None:
    images = flat(count, side)
    dataset = finished(distilled(tmp_path / "in", images, (count + 1) // 2), tmp_path / "out")
    page, shot = moved(dataset, tmp_path / "50% of it #1?"), tmp_path / "page.png"
    state = seen(page, STATE, width=width, address="#class=1")
    # Images are decoded beside the page's thread, and drawn when they are: without "checker
    # imaging" nothing is drawn before.
    options = (
        f"--screenshot={shot}",
        "--virtual-time-budget=60000",
        "--run-all-compositor-stages-before-draw",
        "--disable-checker-imaging",
    )
    browse(page, *options, width=width, address="#class=1")
    half = count // 2
    assert state["keys"] == [f"00001/{number:05d}" for number in range(half)]
    assert (state["headings"], state["count"]) == (["class 1"], f"1–{half} of {half}")
    assert state["numbers"] == [f"{half} images"]
    ten = seen(page, STATE, width=width, address="#query=00001/0000")
    assert ten["numbers"] == [f"10 of {half} images"]
    tile, loaded = min(side, 128), len(state["loaded"])
    assert loaded >= 16
    assert state["loaded"] == [10 * tile, side] * (loaded // 2)
    assert state["overflow"] <= 0
    # Where each image is, its colour is seen; JPEG and the browser may round.
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    colours = images[-half:, 0, 0].astype(int)
    expected = np.stack([colours, 255 - colours], axis=1).reshape(-1, 3)
    visible = [(x, y) for x, y in state["centres"] if y < pixels.shape[0] - 20]
    assert len(visible) > 10
    for (x, y), colour in zip(visible, expected, strict=False):
        assert np.abs(pixels[y, x] - colour).max() <= 6


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of names that are not safe in HTML, in a script, in a shell or in an address."""
    root = tmp_path_factory.mktemp("hostile")
    source = distilled(root / '<b>"in" & $out', flat(6, 16), 3)
    (source / "0" / "2.png").rename(source / "0" / "a#b?c%20 é'\"<i>&amp;.png")
    evil = "</script><script>pwned = 1</script><!--"
    names = (evil, '<img src=x onerror="pwned = 2">', *(f"class {n}" for n in range(8)))
    dataset = finished(
        source, root / "out", left_out=["00001/00001"], class_names=names, model=evil
    )
    return moved(dataset, root / "it's <i>#moved</i>")


FOUND: dict[str, dict[str, Any]] = {
    "#": {"count": "1–6 of 6", "missing": ["left out: is all in one colour"]},
    "#class=1": {"keys": [f"00001/{number:05d}" for number in range(3)]},
    "#class=left-out": {"keys": ["00001/00001"], "loaded": [160]},
    "#query=A%23B%3Fc%2520": {"keys": ["00000/00000"]},
    "#query=onerror+00001%2F": {"count": "1–3 of 3", "numbers": ["3 images"]},
    "#query=nowhere": {"count": "0 images", "keys": []},
    "#class=%3Cb%3E&page=-7": {"count": "1–6 of 6"},
    "#class=0&image=00000/00002": {"viewer": "00000/00002"},
    "#image=../../x": {"viewer": False},
}


def test_filter_search_and_viewer_follow_the_address(page: Path) -> None:
    script = f"""
      const state = async () => {{ {STATE} }};
      const states = [];
      for (const address of {json.dumps(list(FOUND))}) {{
        const before = location.href;
        const changed = new Promise((resolve) =>
          addEventListener("hashchange", resolve, {{ once: true }}));
        location.hash = address;
        if (location.href !== before) await changed;
        states.push(await state());
      }}
      return states;
    """
    for state, (address, expected) in zip(seen(page, script), FOUND.items(), strict=True):
        assert {name: state[name] for name in expected} == expected, address
        assert all(state["loaded"])
        assert state["pwned"] is None


def test_it_is_used_with_the_keyboard_and_the_mouse(page: Path) -> None:
    script = f"""
      const state = async () => {{ {STATE} }};
      const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", {{ key }}));
      const states = [];
      const enter = (id, value, event) => {{
        document.getElementById(id).value = value;
        document.getElementById(id).dispatchEvent(new Event(event));
      }};
      document.body.dispatchEvent(new KeyboardEvent("keydown", {{ key: "/", bubbles: true }}));
      states.push(document.activeElement.id);
      enter("query", "0.png", "input");
      states.push((await state()).keys);
      enter("class", "1", "change");
      states.push((await state()).keys);
      enter("query", "", "input");
      document.querySelector(".pair").click();
      press("ArrowRight");
      states.push((await state()).viewer, location.hash);
      // A dialog's event "close" comes later, and the page's own handler of it, added before this
      // one, changes the address.
      const closed = new Promise((resolve) =>
        document.querySelector("dialog").addEventListener("close", resolve, {{ once: true }}));
      document.getElementById("close").click();
      await closed;
      states.push((await state()).viewer, location.hash, document.activeElement.innerText);
      return states;
    """
    states = seen(page, script)
    assert states[:3] == ["query", ["00000/00001", "00001/00000"], ["00001/00000"]]
    assert states[3:7] == ["00001/00001", "#class=1&image=00001%2F00001", False, "#class=1"]
    assert "00001/00001" in states[7]


def test_untrusted_text_is_shown_as_it_is(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<b>" not in text
    assert text.count("<script") == text.count("</script>") == 3
    shown = seen(page, "return document.querySelector('main').innerText;")
    assert '5 images recovered from <b>"in" & $out' in shown
    assert "with </script><script>pwned = 1</script><!-- fp32" in shown
    assert "--bundle BUNDLE '<b>\"in\" & $out' RECOVERED" in shown
    assert "1 image was left out" in shown


def test_no_option_of_the_command_is_broken_after_a_hyphen(page: Path) -> None:
    script = """
      const code = document.querySelector("pre code"), range = document.createRange();
      const broken = [];
      let options = 0;
      for (let width = 200; width < 600; width += 20) {
        code.parentElement.style.width = `${width}px`;
        const texts = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
        for (let text = texts.nextNode(); text; text = texts.nextNode()) {
          for (const {0: option, index} of text.data.matchAll(/--[a-z-]+/g)) {
            range.setStart(text, index);
            range.setEnd(text, index + option.length);
            const lines = new Set([...range.getClientRects()].map((box) => box.top));
            if (lines.size > 1) broken.push(`${option} at ${width} px`);
            options++;
          }
        }
      }
      return {broken, options};
    """
    found = seen(page, script)
    assert found["options"] >= 20 * 4
    assert found["broken"] == []


def many(manifest: Manifest, count: int) -> Manifest:
    """Return a manifest of as many images."""
    first, per_class = manifest.samples[0], count // len(manifest.classes)
    samples = []
    for entry in manifest.classes:
        for number in range(per_class):
            key = f"{entry.index:05d}/{number:05d}"
            values: dict[str, Any] = {
                "key": key,
                "index": entry.index,
                "label": entry.label,
                "wnid": entry.wnid,
            }
            source = f"{entry.index}/ILSVRC2012_val_{number:08d}.JPEG"
            samples.append(replace(first, **values, source=source, file=f"{key}.png"))
    return replace(manifest, samples=tuple(samples))


def test_fifty_thousand_images_make_a_small_page_of_few_elements(tmp_path: Path) -> None:
    dataset = finished(distilled(tmp_path / "in", flat(10, 16), 1), tmp_path / "out")
    manifest = many(open_recovered(dataset.root).manifest, 50_000)
    sheets = [Sheet(f"gallery_{number:05d}.png", 100) for number in range(500)]
    view = View(contents=Contents.of(manifest), recipe=Recipe(), sheets=sheets, side=16)
    text = render(view, Stamp("0" * 64, 500, "png"))
    assert len(text) < 5e6
    (tmp_path / "index.html").write_text(text, encoding="utf-8")
    script = """return {
      count: document.getElementById("count").value,
      elements: document.querySelectorAll("*").length,
      last: document.getElementById("last").value,
      sheet: document.querySelector(".sheet").getAttribute("src"),
      lazy: [...document.images].every((image) => image.loading === "lazy"),
    }"""
    state = seen(tmp_path / "index.html", script, address="#page=417")
    assert state.pop("elements") < 2000
    assert state == {
        "count": "49,921–50,000 of 50,000",
        "last": "417",
        "sheet": "gallery_00499.png",
        "lazy": True,
    }

"""A finished folder has the manifest that this run would write; other runs are refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.crash import different
from diver_trt.errors import OutputError
from diver_trt.lock import LOCK
from diver_trt.manifest import inspect_recovered
from diver_trt.recovered import earlier_run
from diver_trt.recovered.earlier_run import describe_changes, inputs_of_entries
from diver_trt.recovered.folder import open_output
from diver_trt.recovered.writer import DatasetWriter
from tests.conftest import files_of
from tests.edited_json import set_in
from tests.recovered import fake_run
from tests.recovered.commands import in_manifest, journal_of, manifest_of, put_journal
from tests.recovered.fake_run import CLASSES, head, recover, samples


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a JSON document, lists and objects included."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, child in inner:
        yield (*path, name)
        yield from leaves(child, (*path, name))


def damaged(document: dict[str, Any], path: tuple[Any, ...], to: Any) -> dict[str, Any]:
    document = copy.deepcopy(document)
    set_in(*path, to=to)(document)
    return document


def test_no_damage_to_a_manifest_is_called_finished(whole: Path, out: Path) -> None:
    """Every field: afterwards the folder equals an undisturbed one, or the run is refused."""
    recover(out)
    written = manifest_of(whole)
    repaired, refused = [], []
    middle = [("samples", number) for number in range(1, 4)]  # as the first and the last
    for path in leaves(written):
        if path[:2] in middle:
            continue
        for to in (..., None, "\x1b", True):
            manifest = damaged(written, path, to)
            if json.dumps(manifest) == json.dumps(written):
                continue
            (out / "manifest.json").write_text(json.dumps(manifest))
            before = files_of(out)
            try:
                recover(out)
            except OutputError as error:
                assert str(error).isprintable()
                assert files_of(out) == before
                refused.append(path)
            else:
                assert different(whole, out) == [], (path, to)
                repaired.append(path)
    head = {"schema", "tool", "bundle", "recipe", "seed", "source", "layout", "shard"}
    assert {path[0] for path in refused} == head
    assert {"classes", "samples", "skipped", "companions", "class_map"} <= {
        path[0] for path in repaired
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(classes=[]),
        lambda manifest: manifest["classes"][0].update(label=99),
        lambda manifest: manifest["classes"].reverse(),
        lambda manifest: manifest["classes"].append(dict(manifest["classes"][0], index=7)),
        lambda manifest: manifest["classes"][1].update(name="another"),
        lambda manifest: manifest["samples"][0].update(index=False),
        lambda manifest: manifest["source"].update(clipped=0.5),
        lambda manifest: manifest["source"].update(sha256="2" * 64),
        lambda manifest: manifest.update(more="fields"),
    ],
)
def test_damaged_classes_are_written_again_and_the_images_stay(
    whole: Path, out: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    recover(out)
    in_manifest(out, change)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("0*.png")}
    assert recover(out) == 0
    assert different(whole, out) == []
    assert {path: path.stat().st_mtime_ns for path in out.rglob("0*.png")} == before
    assert inspect_recovered(out)["classes"] == 2


def opened(
    root: Path, *, sha256: str = "1" * 64, version: str | None = None, **known: Any
) -> DatasetWriter:
    """Open an output folder for an input with this hash, and look no further."""
    begin = head()
    begin["source"]["sha256"] = sha256
    if version:
        begin["tool"]["version"] = version
    with open_output(
        root, begin, samples=known["samples"] if known else samples(), classes=CLASSES
    ) as writer:
        return writer


# A changed input


def with_change(key: str, **fields: Any) -> dict[str, dict[str, Any]]:
    known = samples()
    known[key] |= fields
    return known


@pytest.mark.parametrize("until", [2, 6])
@pytest.mark.parametrize("number", range(5))
def test_a_changed_image_is_named_whether_it_is_done_or_not(
    out: Path, until: int, number: int
) -> None:
    recover(out, until)
    key = list(samples())[number]
    changed = with_change(key, source_sha256="f" * 64)
    with pytest.raises(OutputError) as caught:
        opened(out, sha256="2" * 64, samples=changed)
    assert str(caught.value) == (
        f"{out}: holds a run of another input (1 changed: {changed[key]['source']}); "
        "use the same to resume it, "
        "--overwrite to begin again, or choose another folder"
    )


@pytest.mark.parametrize("until", [2, 6])
def test_left_out_images_may_change_and_only_they_are_made_again(out: Path, until: int) -> None:
    """The last image is left out in both runs; a run that stopped early never reached it."""
    recover(out, until)
    done, last = list(samples())[:until], list(samples())[5]
    bad = with_change(last, source_sha256="", problem="is damaged")
    writer = opened(out, sha256="2" * 64, samples=bad)
    assert (writer.lost, list(writer.done)) == (0, done)
    repaired = with_change(last, source_sha256="e" * 64)
    writer = opened(out, sha256="3" * 64, samples=repaired)
    assert (writer.lost, list(writer.done)) == (0, done[:5])
    notes = (
        "the input differs only in images that were left out",
        "1 image was left out before and can be read now",
    )
    assert writer.notes == (notes if until == 6 else notes[:1])


def test_a_source_that_cannot_be_read_any_more_keeps_its_image(out: Path) -> None:
    recover(out, 2)
    bad = with_change("00000/00001", source_sha256="", problem="is damaged")
    with pytest.raises(OutputError, match=r"another input \(1 changed: 0/1\.png\)"):
        opened(out, sha256="2" * 64, samples=bad)


def test_a_journal_that_lists_another_input_than_its_lines_keeps_no_image_of_another_source(
    out: Path,
) -> None:
    """Somebody has edited the list, so that the images of the input seem to be the same."""
    recover(out, 2)
    changed = with_change("00000/00001", source_sha256="f" * 64)
    journal = journal_of(out)
    journal[0]["inputs"][1][3] = "f" * 64
    put_journal(out, journal)
    writer = opened(out, sha256="2" * 64, samples=changed)
    assert (writer.lost, set(writer.done)) == (1, {"00000/00000"})


def test_a_journal_that_lists_no_input_is_refused_for_another_one(out: Path) -> None:
    """As one of version 0.1.0."""
    recover(out, 2)
    journal = journal_of(out)
    del journal[0]["inputs"]
    put_journal(out, journal)
    with pytest.raises(
        OutputError, match=r"another input \(source sha256 111111111111…, now 222222222222…\)"
    ):
        opened(out, sha256="2" * 64)
    assert set(opened(out).done) == {"00000/00000", "00000/00001"}


def entry(key: str, source: str, label: int, sha256: str) -> dict[str, Any]:
    return {"key": key, "source": source, "label": label, "source_sha256": sha256}


BEFORE = [entry(f"0000{c}/0000{n}", f"{c}/{n}.png", c, f"{c}{n}") for c in (0, 1) for n in range(3)]


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (BEFORE, ""),
        ([{**image, "source": f"renamed{i}"} for i, image in enumerate(BEFORE)], ""),
        ([BEFORE[0], entry("00000/00001", "0/2.png", 0, "02"), *BEFORE[3:]], "1 removed: 0/1.png"),
        (
            [
                *BEFORE[:3],
                entry("00001/00000", "1/-1.png", 1, "new"),
                *(entry(f"0000{1}/0000{n + 1}", f"1/{n}.png", 1, f"1{n}") for n in range(3)),
            ],
            "1 added: 1/-1.png",
        ),
        ([{**BEFORE[0], "source_sha256": "x"}, *BEFORE[1:]], "1 changed: 0/0.png"),
        ([{**BEFORE[0], "label": 7}, *BEFORE[1:]], "1 relabelled: 0/0.png"),
        (
            [*BEFORE[:3], *({**image, "label": 7, "source_sha256": "x"} for image in BEFORE[3:])],
            "3 changed: 1/0.png, 1/1.png, 1/2.png; 3 relabelled: 1/0.png, 1/1.png, 1/2.png",
        ),
        (
            [{**image, "source": f"a/{image['source']}", "source_sha256": "x"} for image in BEFORE],
            "6 added: a/0/0.png, a/0/1.png, a/0/2.png and 3 more; "
            "6 removed: 0/0.png, 0/1.png, 0/2.png and 3 more",
        ),
    ],
)
def test_changes_are_described_image_by_image(after: list[dict[str, Any]], expected: str) -> None:
    assert describe_changes(inputs_of_entries(BEFORE), inputs_of_entries(after)) == expected


def test_a_left_out_image_that_was_deleted_is_the_one_that_is_missing() -> None:
    left_out = {"key": "00000/00000", "source": "0/0.png", "label": 0, "source_sha256": ""}
    before = [{**left_out, "problem": "is damaged"}, *BEFORE[1:3]]
    after = [{**image, "key": f"00000/0000{n}"} for n, image in enumerate(BEFORE[1:3])]
    found = describe_changes(inputs_of_entries(before), inputs_of_entries(after))
    assert found == "1 removed: 0/0.png"


# Versions


@pytest.fixture
def this_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let this be another version."""

    def be(version: str) -> None:
        monkeypatch.setattr(earlier_run, "__version__", version)
        monkeypatch.setattr(fake_run, "__version__", version)

    return be


@pytest.mark.parametrize("until", [2, 6])
def test_a_newer_version_that_makes_the_same_images_resumes(
    out: Path, this_is: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, until: int
) -> None:
    monkeypatch.setattr(earlier_run, "SAME_IMAGES_SINCE", "0.1.0")
    this_is("0.1.0")
    recover(out, until)
    before = (out / "manifest.json").read_bytes() if until == 6 else b""
    this_is("0.3.1")
    writer = opened(out, version="0.3.1")
    assert set(writer.done or samples()) == set(list(samples())[:until])
    if until == 6:
        assert writer.finished
        assert (out / "manifest.json").read_bytes() == before
    else:
        assert writer.notes == ("was begun with version 0.1.0, which makes the same images",)


@pytest.mark.parametrize(
    ("begun", "now", "since"),
    [
        ("0.1.0", "0.3.0", "0.2.0"),
        ("0.3.0", "0.2.9", "0.1.0"),
        ("x", "0.2.0", "0.1.0"),
        ("0.0.9", "0.1.0", "0.1.0"),
    ],
)
def test_a_version_whose_images_may_differ_is_refused(
    out: Path,
    this_is: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    begun: str,
    now: str,
    since: str,
) -> None:
    this_is(begun)
    recover(out, 2)
    this_is(now)
    monkeypatch.setattr(earlier_run, "SAME_IMAGES_SINCE", since)
    with pytest.raises(OutputError) as caught:
        recover(out)
    assert (
        f'holds a run of version "{begun}", whose images may differ from those of {now}. '
        "Install that version" in str(caught.value)
    )


# Files without a record


def test_records_of_no_image_are_counted_apart(whole: Path, out: Path) -> None:
    recover(out, 4)
    with (out / "journal.jsonl").open("a") as journal:
        journal.write('{}\n\ngarbage\n{"key": "00009/00000"}\n')
        journal.write(json.dumps(head()) + "\n")
    writer = opened(out)
    assert (writer.lost, len(writer.done)) == (0, 4)
    assert writer.notes == ("5 records are not of an image of this run, and ignored",)
    recover(out)
    assert different(whole, out) == []


def make_lock(root: Path, kind: str) -> None:
    if kind == "a folder":
        (root / LOCK).mkdir()
    else:
        (root / LOCK).symlink_to(root / "elsewhere")


@pytest.mark.parametrize("kind", ["a folder", "a symlink"])
@pytest.mark.parametrize("until", [2, 6])
def test_a_lock_that_is_not_a_regular_file_is_refused(out: Path, kind: str, until: int) -> None:
    recover(out, until)
    make_lock(out, kind)
    before = files_of(out)
    with pytest.raises(OutputError) as caught:
        recover(out)
    assert (
        str(caught.value)
        == f"{out / LOCK}: is {kind}, expected the lock file of this command. Delete it."
    )
    assert files_of(out) == before


def test_images_whose_manifest_was_deleted_are_made_again_only_with_overwrite(
    whole: Path, out: Path
) -> None:
    recover(out)
    (out / "manifest.json").unlink()
    before = files_of(out)
    with pytest.raises(OutputError) as caught:
        recover(out)
    assert (
        f"{out}: holds images of a run whose manifest.json is missing, so that what they were made "
        "from is unknown. Restore manifest.json, add --overwrite to make the images again, or "
        "choose another folder"
    ) == str(caught.value)
    assert files_of(out) == before
    recover(out, overwrite=True)
    assert different(whole, out) == []


@pytest.mark.parametrize("name", ["mine.txt", "00000/mine.png", "00003/00000.png", "README.md"])
def test_beside_anything_else_they_are_not_touched(out: Path, name: str) -> None:
    recover(out)
    (out / "manifest.json").unlink()
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_bytes(b"mine")
    before = files_of(out)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="already holds something"):
            recover(out, overwrite=overwrite)
    assert files_of(out) == before


def test_images_without_a_contact_sheet_are_not_ours(out: Path) -> None:
    recover(out)
    (out / "manifest.json").unlink()
    (out / "contact_sheet.png").unlink()
    with pytest.raises(OutputError, match="already holds something"):
        recover(out, overwrite=True)

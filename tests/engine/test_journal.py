"""The journal: complete, without repetition, and indifferent to torn lines."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvit import vocabulary as v
from cvit.engine.planning.plan import Plan
from cvit.engine.recording.journal import Journal
from cvit.engine.recording.lease import LeaseLost
from cvit.errors import NoAnswer
from cvit.records import EndRecord, PointsRecord, Record, StudyRecord, TrialRecord, to_json
from cvit.storage import Storage, StorageError, decode_records, encode_record
from sweeps.head_count import HEAD_COUNT
from tests.support.plans import SMALL, make_plan

FIXTURES = Path(__file__).parent / "fixtures"
POINTS = [(v.VAL_ACCURACY, 4, 0.25, 1000), (v.TRAIN_LOSS, 4, 2.0, 1000), (v.VAL_ACCURACY, 8, 0.5, 2000)]


def open_journal(folder: Path) -> Journal:
    return Journal(Storage.open(str(folder)), "low_data")


def fill(journal: Journal, plan: Plan) -> None:
    journal.record_plan(plan.study, plan.trials, {"tag": "value"})
    for trial in plan.trials:
        journal.record_points([trial], POINTS)
        journal.record_end(trial, v.STATUS_OK, {}, "note")


def types(journal: Journal) -> list[str]:
    return sorted(record.type for record in journal.records)


def test_recording_twice_in_one_or_another_driver_adds_nothing(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, *SMALL)
    journal = open_journal(tmp_path)
    fill(journal, plan)
    once = types(journal)
    fill(journal, plan)
    assert types(journal) == once == sorted(["study"] + ["trial", "points", "end"] * 8)
    again = open_journal(tmp_path)
    fill(again, plan)
    assert again.records == journal.records


def test_only_new_measurements_are_recorded(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, *SMALL)
    journal = open_journal(tmp_path)
    journal.record_points(plan.trials[:1], POINTS[:2])
    journal.record_points(plan.trials[:1], [(v.VAL_ACCURACY, 4, 0.25, 9999), *POINTS])
    recorded = [point for record in journal.records if isinstance(record, PointsRecord) for point in record.points]
    assert recorded == POINTS


def test_a_torn_last_line_is_recorded_again_and_harms_no_other(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, *SMALL)
    journal = open_journal(tmp_path)
    fill(journal, plan)
    whole = journal.records
    (segment,) = (tmp_path / "journal/low_data").iterdir()
    segment.write_bytes(segment.read_bytes()[:-7])
    after = open_journal(tmp_path)
    assert after.records == whole[:-1]
    fill(after, plan)
    assert types(open_journal(tmp_path)) == types(journal)


def test_a_grown_grid_is_recorded_beside_the_first(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    fill(journal, make_plan(tmp_path, *SMALL))
    fill(journal, make_plan(tmp_path, "--data-fraction", "0.1", "--init-scheme", "random", "--seeds", "1", *SMALL[8:]))
    studies = [record for record in journal.records if isinstance(record, StudyRecord)]
    assert len({record.study_key for record in studies}) == 1
    assert [record.cells[0]["data_fraction"] for record in studies] == [[0.02, 0.05], [0.1]]
    assert len([record for record in journal.records if isinstance(record, TrialRecord)]) == 9


def test_listeners_get_what_is_new_once_it_is_on_the_disk(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, *SMALL)
    journal, heard = open_journal(tmp_path), []
    journal.listen(lambda records: heard.extend((r, r in open_journal(tmp_path).records) for r in records))
    fill(journal, plan)
    assert [record for record, _ in heard] == journal.records
    assert all(on_disk for _, on_disk in heard)


def test_a_damaged_line_in_the_middle_is_recorded_again(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, *SMALL)
    journal = open_journal(tmp_path)
    journal.record_plan(plan.study, plan.trials, {})
    for point in POINTS:
        journal.record_points(plan.trials[:1], [point])
    (segment,) = (tmp_path / "journal/low_data").iterdir()
    lines = segment.read_bytes().splitlines(keepends=True)
    place = next(number for number, line in enumerate(lines) if b'"points"' in line)
    lines[place] = lines[place].replace(b"0.25", b"0.35")
    segment.write_bytes(b"".join(lines))
    after = open_journal(tmp_path)
    after.record_points(plan.trials[:1], POINTS)
    recorded = [p for r in open_journal(tmp_path).records if isinstance(r, PointsRecord) for p in r.points]
    assert sorted(recorded) == sorted(POINTS)


def test_segments_keep_their_order_when_the_clock_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tmp_path, *SMALL)
    clock = [2_000_000_000_000_000_000, 1_000_000_000_000_000_000, 1_500_000_000_000_000_000]
    for now, status in zip(clock, (v.STATUS_FAILED, v.STATUS_OK, v.STATUS_OK), strict=True):
        monkeypatch.setattr(time, "time_ns", lambda now=now: now)
        open_journal(tmp_path).record_end(plan.trials[0], status, {}, "note")
    assert open_journal(tmp_path).status(plan.trials[0].key) == v.STATUS_OK
    assert len(open_journal(tmp_path).records) == 2


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_error_and_no_half_line_spoils_the_next(disk: Path) -> None:
    plan = make_plan(disk, *SMALL)
    journal = open_journal(disk)
    journal.record_plan(plan.study, plan.trials, {})
    many = [(v.VAL_ACCURACY, step, 0.5, 1000) for step in range(100_000)]
    with pytest.raises(StorageError, match="No space left on device"):
        journal.record_points(plan.trials[:1], many)
    before = len(open_journal(disk).records)
    for path in (disk / "journal/low_data").iterdir():
        if b'"points"' in path.read_bytes():
            path.write_bytes(path.read_bytes()[:100_000])  # somebody makes room; the line stays torn
    journal.record_points(plan.trials[:1], POINTS)
    assert len(open_journal(disk).records) == before + 1


def test_a_storage_that_cannot_be_reached_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make_plan(tmp_path, *SMALL)
    journal = open_journal(tmp_path)
    append, failures = Storage.append_local, [OSError("stale"), ConnectionResetError("reset"), TimeoutError("slow")]

    def append_when_reached(storage: Storage, path: str, data: bytes, **options: bool) -> None:
        if failures:
            raise failures.pop()
        append(storage, path, data, **options)

    slept: list[float] = []
    monkeypatch.setattr(Storage, "append_local", append_when_reached)
    monkeypatch.setattr(time, "sleep", slept.append)
    fill(journal, plan)
    assert slept == [1, 2, 4]
    assert [record.getMessage().split(": ")[-1] for record in caplog.records] == [
        "slow; trying again in 1 s",
        "reset; trying again in 2 s",
        "stale; trying again in 4 s",
    ]
    assert open_journal(tmp_path).records == journal.records


def test_an_object_store_is_written_at_most_once_a_second_and_gets_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tmp_path, *SMALL)
    storage = Storage.open("mock:///")
    assert storage._filesystem is not None
    storage._filesystem.create_dir("journal/low_data", recursive=True)
    write, writes, failures = Storage.write, list[str](), [TimeoutError("slow")]

    def counted(storage: Storage, path: str, data: bytes) -> None:
        if len(writes) == 1 and failures:
            raise failures.pop()
        writes.append(path)
        write(storage, path, data)

    monkeypatch.setattr(Storage, "write", counted)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    journal = Journal(storage, "low_data")
    heard: list[Record] = []
    journal.listen(heard.extend)
    for step in range(1, 3001):  # more than one segment
        journal.record_points([plan.trials[0]], [(v.VAL_ACCURACY, step, 0.5, 1000)])
        # Who listens hears what is written: a tracker that starts again finds the rest in the storage.
        assert step % 500 or Journal(storage, "low_data").records == heard
    journal.flush()
    assert len(heard) == 3000
    assert len(writes) <= 2 + time.process_time()
    assert Journal(storage, "low_data").records == heard
    fill(journal, plan)
    journal.flush()
    assert len(storage.names("journal/low_data")) == 2
    assert types(Journal(storage, "low_data")) == types(journal)


def journal_of_the_version_before(folder: Path, sweep: str) -> bytes:
    """Copies the journal that version d709f53 wrote (`--preset smoke`) into a storage, and returns its bytes."""
    data = (FIXTURES / f"{sweep}.jsonl").read_bytes()
    Storage.open(str(folder)).write(f"journal/{sweep}/01795788597775050122-2749.jsonl", data)
    return data


@pytest.mark.parametrize("sweep", ["low_data", "expressivity"])
def test_the_records_of_the_version_before_encode_to_the_same_bytes(tmp_path: Path, sweep: str) -> None:
    data = journal_of_the_version_before(tmp_path, sweep)
    records = Journal(Storage.open(str(tmp_path)), sweep).records
    assert len(records) == len(data.splitlines())
    assert b"".join(encode_record(to_json(record)) for record in records) == data


def test_the_records_of_the_version_before_are_read_as_they_were_meant(tmp_path: Path) -> None:
    journal_of_the_version_before(tmp_path, "expressivity")
    records = Journal(Storage.open(str(tmp_path)), "expressivity").records
    params = {"fit_channels": 8, "fit_image_size": 8, "fit_learning_rate": 0.2, "fit_steps": 400}
    tags = {v.TAG_CODE_VERSION: "0.1.0+d709f53", v.TAG_TASK: v.EXPRESSIVITY}
    assert [record.type for record in records] == ["study"] + ["trial"] * 12 + ["points", "end"] * 12
    assert records[0] == StudyRecord(
        study_key="c4edec16eb174b1d",
        sweep="expressivity",
        question="How close does attention with so many heads come to a convolution, "
        "and how close can it come at best?",
        command="python ../before/sweeps/head_count.py --preset smoke",
        start_time_ms=1795788636777,
        params=params,
        cells=[{"kernel_size": [3], "num_heads": [1, 8, 9], "patch_size": [1, 2], "seed": [0, 1]}],
        tags=tags,
    )
    assert records[1] == TrialRecord(
        trial_key="d003a3e60cbadc0e",
        study_key="c4edec16eb174b1d",
        params=params | {"kernel_size": 3, "num_heads": 1, "patch_size": 1, "seed": 0},
        tags=tags,
    )
    points = records[13]
    assert isinstance(points, PointsRecord)
    assert (points.trial_key, len(points.points)) == ("d003a3e60cbadc0e", 12)
    assert points.points[0] == (v.EXPRESSIVITY_ERROR, 0, 0.9978665189451138, 1795788640730)
    assert points.points[-1] == (v.EXPRESSIVITY_BOUND, 400, 0.9086008901399861, 1795788641043)
    assert records[14] == EndRecord(
        trial_key="d003a3e60cbadc0e",
        status=v.STATUS_OK,
        note="fit 80c2dcad0d812a530f9ebf82 (400 steps); 1.4 s",
        time_ms=1795788641049,
        tags={v.TAG_DEVICE: "cpu"},
    )


def test_a_plan_recorded_on_top_of_the_version_before_adds_only_what_is_new(tmp_path: Path) -> None:
    data = journal_of_the_version_before(tmp_path, "low_data")
    journal = open_journal(tmp_path)
    before = journal.records
    plan = make_plan(tmp_path, "--preset", "smoke")
    journal.record_plan(plan.study, plan.trials, {"tag": "of today"})
    for record in before:
        (trial, *_) = [trial for trial in plan.trials if getattr(record, "trial_key", trial.key) == trial.key]
        if isinstance(record, PointsRecord):
            journal.record_points([trial], record.points)
        elif isinstance(record, EndRecord):
            assert journal.status(trial.key) == record.status
            journal.record_end(trial, record.status, {}, "another note")
    assert journal.records == before
    (segment,) = (tmp_path / "journal/low_data").iterdir()
    assert segment.read_bytes() == data
    grown = make_plan(tmp_path, "--preset", "smoke", "--seeds", "2")
    assert grown.study.key == plan.study.key
    journal.record_plan(grown.study, grown.trials, {})
    assert [record.type for record in journal.records[len(before) :]] == ["study"] + ["trial"] * 6


def test_a_grid_that_the_version_before_wrote_with_numbers_for_auto_is_known(tmp_path: Path) -> None:
    """Its journals hold `inner_dim` 0 where this version has None."""
    plan = make_plan(tmp_path, "--preset", "smoke", sweep=HEAD_COUNT)
    Journal(Storage.open(str(tmp_path)), "head_count").record_plan(plan.study, plan.trials, {})
    (segment,) = (tmp_path / "journal/head_count").iterdir()
    (study, *trials) = decode_records(segment.read_bytes())
    assert study["cells"][0]["inner_dim"] == [None, 144]
    study["cells"][0]["inner_dim"] = [0, 144]
    segment.write_bytes(b"".join(map(encode_record, [study, *trials])))
    journal = Journal(Storage.open(str(tmp_path)), "head_count")
    before = journal.records
    journal.record_plan(plan.study, plan.trials, {})
    assert journal.records == before


def test_a_record_of_a_type_of_a_later_version_is_passed_over(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, *SMALL)
    fill(open_journal(tmp_path), plan)
    records = open_journal(tmp_path).records
    later = encode_record({"type": "of a later version", "trial_key": plan.trials[0].key})
    Storage.open(str(tmp_path)).append_local("journal/low_data/1.jsonl", later)
    assert open_journal(tmp_path).records == records


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"type": "of a later version", "trial_key": "a"}, "records of type 'of a later version'"),
        ({"type": v.RECORD_POINTS, "trial_key": "a", "points": [], "unit": "%", "by": 1}, "fields 'by', 'unit'"),
    ],
)
def test_what_is_passed_over_is_said_once_with_its_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, record: dict[str, object], what: str
) -> None:
    storage = Storage.open(str(tmp_path))
    for number in (1, 2):
        storage.append_local(f"journal/low_data/{number}.jsonl", encode_record(record))
    for _ in range(2):
        _ = open_journal(tmp_path).records
    said = f"journal/low_data/1.jsonl has {what}, written by a later version; they are passed over"
    assert [line.getMessage() for line in caplog.records] == [f"storage {str(tmp_path)!r}: {said}"]


def test_every_record_has_its_format_and_one_without_is_of_the_first(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, *SMALL)
    fill(open_journal(tmp_path), plan)
    records = open_journal(tmp_path).records
    (segment,) = (tmp_path / "journal/low_data").iterdir()
    lines = decode_records(segment.read_bytes())
    assert {line.pop("format") for line in lines} == {1}
    segment.write_bytes(b"".join(map(encode_record, lines)))
    assert open_journal(tmp_path).records == records


def test_a_journal_of_a_later_format_is_refused(tmp_path: Path) -> None:
    path = "journal/low_data/1.jsonl"
    Storage.open(str(tmp_path)).append_local(path, encode_record({"type": v.RECORD_END, "format": 2}))
    with pytest.raises(StorageError, match=r"cannot be read: .*1\.jsonl was written by a later version"):
        open_journal(tmp_path)


def test_a_journal_that_is_removed_is_not_begun_anew(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, *SMALL)
    journal = open_journal(tmp_path / "storage")
    journal.record_plan(plan.study, plan.trials, {})
    (tmp_path / "storage").rename(tmp_path / "elsewhere")
    for _ in range(2):  # the second one is what is still recorded while the sweep ends
        with pytest.raises(StorageError, match="was removed while the sweep ran"):
            journal.record_points(plan.trials[:1], POINTS)
    assert not (tmp_path / "storage").exists()


def test_a_write_that_was_given_up_cannot_undo_a_later_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tmp_path, *SMALL)
    storage = Storage.open("mock:///")
    assert storage._filesystem is not None
    storage._filesystem.create_dir("journal/low_data", recursive=True)
    write, given_up = Storage.write, list[tuple[str, bytes]]()

    def never_answered_at_first(storage: Storage, path: str, data: bytes) -> None:
        if not given_up:
            given_up.append((path, data))
            raise NoAnswer("no answer within 120 s")
        write(storage, path, data)

    monkeypatch.setattr(Storage, "write", never_answered_at_first)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    journal = Journal(storage, "low_data")
    journal.record_points(plan.trials[:1], POINTS[:1])
    journal.record_points(plan.trials[:1], POINTS)
    journal.flush()
    records = journal.records
    assert [point for record in records if isinstance(record, PointsRecord) for point in record.points] == POINTS
    write(storage, *given_up[0])  # it is carried out after all
    assert Journal(storage, "low_data").records == records


def test_nothing_is_recorded_once_the_lease_is_lost(tmp_path: Path) -> None:
    has_lost = False

    def check() -> None:
        if has_lost:
            raise LeaseLost("another driver has it")

    plan = make_plan(tmp_path, *SMALL)
    journal = Journal(Storage.open(str(tmp_path)), "low_data", check)
    journal.record_plan(plan.study, plan.trials, {})
    (segment,) = tmp_path.glob("journal/low_data/*")
    before, has_lost = segment.read_bytes(), True
    with pytest.raises(LeaseLost):
        journal.record_end(plan.trials[0], v.STATUS_OK, {}, "")
    journal.flush()
    assert segment.read_bytes() == before and len(list(tmp_path.glob("journal/low_data/*"))) == 1

"""The journal: complete, without repetition, and indifferent to torn lines."""

from pathlib import Path

from planning import SMALL, make_plan

from cvit import vocabulary as v
from cvit.storage import Storage
from sweeps.engine.journal import Journal
from sweeps.engine.plan import Plan

POINTS = [(v.VAL_ACCURACY, 4, 0.25, 1000), (v.TRAIN_LOSS, 4, 2.0, 1000), (v.VAL_ACCURACY, 8, 0.5, 2000)]


def open_journal(folder: Path) -> Journal:
    return Journal(Storage.open(str(folder)), "low_data")


def fill(journal: Journal, plan: Plan) -> None:
    journal.record_plan(plan.study, plan.trials, {"tag": "value"})
    for trial in plan.trials:
        journal.record_points([trial], POINTS)
        journal.record_end(trial, v.STATUS_OK, {}, "note")


def types(journal: Journal) -> list[str]:
    return sorted(record["type"] for record in journal.records)


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
    recorded = [point for record in journal.records for point in record["points"]]
    assert recorded == [list(point) for point in POINTS]


def test_a_torn_last_line_is_recorded_again_and_harms_no_other(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, *SMALL)
    journal = open_journal(tmp_path)
    fill(journal, plan)
    (segment,) = (tmp_path / "journal/low_data").iterdir()
    segment.write_bytes(segment.read_bytes()[:-7])
    after = open_journal(tmp_path)
    assert after.records == journal.records[:-1]
    fill(after, plan)
    assert types(open_journal(tmp_path)) == types(journal)


def test_a_grown_grid_is_recorded_beside_the_first(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    fill(journal, make_plan(tmp_path, *SMALL))
    fill(journal, make_plan(tmp_path, "--data-fraction", "0.1", "--init-scheme", "random", "--seeds", "1", *SMALL[8:]))
    studies = [record for record in journal.records if record["type"] == v.RECORD_STUDY]
    assert len({record["study_key"] for record in studies}) == 1
    assert [record["cells"][0]["data_fraction"] for record in studies] == [[0.02, 0.05], [0.1]]
    assert len([record for record in journal.records if record["type"] == v.RECORD_TRIAL]) == 9


def test_listeners_get_what_is_new_once_it_is_on_the_disk(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, *SMALL)
    journal, heard = open_journal(tmp_path), []
    journal.listen(lambda records: heard.extend((r, r in open_journal(tmp_path).records) for r in records))
    fill(journal, plan)
    assert [record for record, _ in heard] == journal.records
    assert all(on_disk for _, on_disk in heard)

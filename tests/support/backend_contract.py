"""The contract of a tracking backend: what the tracker relies on, as tests that every backend's test class inherits."""

import subprocess
import sys
from pathlib import Path

import pytest

from cvit import vocabulary as v
from cvit.engine.tracking.backend import FAILED, FINISHED, KILLED, RUNNING, Backend, NewRun, Refused, backend_for
from cvit.engine.tracking.tracker import Tracker
from cvit.records import EndRecord, PointsRecord, Record, StudyRecord, TrialRecord, from_json
from cvit.results import Point
from cvit.storage import decode_records

ROOT = Path(__file__).parents[2]
HEAVY = ("mlflow", "ray", "torch", "pandas")
POINTS: list[Point] = [(v.VAL_ACCURACY, 4, 0.25, 1000), (v.TRAIN_LOSS, 4, 2.0, 1000), (v.VAL_ACCURACY, 8, 0.5, 2000)]
STUDY = StudyRecord(
    study_key="5747d9",
    sweep="low_data",
    question="Is it so?",
    command="python sweeps/low_data.py",
    start_time_ms=1000,
    params={"depth": 1},
    cells=[{"init_scheme": ["random"], "seed": [0]}],
    tags={v.TAG_TASK: v.TRAINING},
)


def journal_of_low_data() -> list[Record]:
    """The records of a real sweep of 6 trials."""
    values = decode_records((ROOT / "tests/engine/fixtures/low_data.jsonl").read_bytes())
    return [record for record in map(from_json, values) if record is not None]


def points_by_trial(records: list[Record]) -> dict[str, list[Point]]:
    points: dict[str, list[Point]] = {}
    for record in records:
        if isinstance(record, PointsRecord):
            points.setdefault(record.trial_key, []).extend(record.points)
    return {key: sorted(of_trial) for key, of_trial in points.items()}


class BackendContract:
    """Tests of one backend. A subclass says where a store lies and reads measurements back without the backend; the
    store is shared by the tests, each of which has a sweep of its own."""

    keeps_runs = True
    """False for a backend that keeps nothing."""

    @classmethod
    def uri_in(cls, folder: Path) -> str:
        """The URI of a store in a folder."""
        raise NotImplementedError

    def measurements(self, uri: str, sweep: str, key: str) -> list[Point]:
        """Every measurement that the store has of a trial, each as often as it is there."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def uri(cls, tmp_path_factory: pytest.TempPathFactory) -> str:
        return cls.uri_in(tmp_path_factory.mktemp("store"))

    @pytest.fixture
    def sweep(self, request: pytest.FixtureRequest) -> str:
        return request.node.name

    def connected(self, uri: str, sweep: str) -> Backend:
        backend = backend_for(uri)
        backend.connect(sweep, STUDY)
        return backend

    def create_study(self, backend: Backend) -> str:
        tags = {v.TAG_ROLE: v.ROLE_STUDY, v.TAG_STUDY_KEY: STUDY.study_key}
        new = NewRun(key=STUDY.study_key, name="study", parent_id=None, start_time_ms=1000, tags=tags)
        return backend.create(new)

    def create_trial(self, backend: Backend, key: str, study_id: str) -> str:
        tags = {v.TAG_ROLE: v.ROLE_TRIAL, v.TAG_STUDY_KEY: STUDY.study_key, v.TAG_TRIAL_KEY: key}
        return backend.create(NewRun(key=key, name="trial", parent_id=study_id, start_time_ms=1000, tags=tags))

    def statuses(self, backend: Backend) -> dict[str, str]:
        return {run.key: run.status for run in backend.existing(set())}

    def test_a_uri_is_looked_at_without_opening_it_or_importing_a_library(self, tmp_path: Path) -> None:
        code = (
            "import sys; from cvit.engine.tracking.backend import backend_for\n"
            f"backend_for({self.uri_in(tmp_path)!r}); print([name for name in {HEAVY} if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout == "[]\n", done.stderr
        assert list(tmp_path.iterdir()) == []

    def test_a_person_is_told_where_to_look(self, uri: str, sweep: str) -> None:
        backend = self.connected(uri, sweep)
        lines = backend.how_to_look()
        assert lines
        for line in lines:
            heading, text = line[:21], line[21:]
            assert heading.rstrip().endswith(":") and heading.endswith(" ")
            assert text and text == text.strip() and "\n" not in text
        assert backend.title and "\n" not in backend.title

    def test_runs_are_found_again_by_a_later_session(self, uri: str, sweep: str) -> None:
        backend = self.connected(uri, sweep)
        assert list(backend.existing(set())) == []
        study_id = self.create_study(backend)
        trial_id = self.create_trial(backend, "7a", study_id)
        assert study_id != trial_id
        backend.write(trial_id, {"seed": 0}, {v.TAG_NOTE: "a note"}, POINTS)
        backend.write(trial_id, {}, {v.TAG_NOTE: "another"}, [])
        again = self.connected(uri, sweep)
        runs = {run.key: run for run in again.existing(set())}
        assert set(runs) == ({STUDY.study_key, "7a"} if self.keeps_runs else set())
        if self.keeps_runs:
            assert (runs["7a"].id, runs["7a"].status) == (trial_id, RUNNING)
            tags = {v.TAG_ROLE: v.ROLE_TRIAL, v.TAG_STUDY_KEY: STUDY.study_key, v.TAG_TRIAL_KEY: "7a"}
            assert runs["7a"].tags.items() >= (tags | {v.TAG_NOTE: "another"}).items()

    def test_sweeps_are_apart(self, uri: str, sweep: str) -> None:
        self.create_study(self.connected(uri, sweep))
        assert list(self.connected(uri, f"{sweep} of another name").existing(set())) == []

    def test_a_measurement_that_is_written_twice_is_there_once(self, uri: str, sweep: str) -> None:
        backend = self.connected(uri, sweep)
        run_id = self.create_trial(backend, "7a", self.create_study(backend))
        backend.write(run_id, {"seed": 0}, {}, POINTS[:2])
        backend.write(run_id, {"seed": 0}, {}, POINTS)
        again = self.connected(uri, sweep)
        assert again.written_steps(run_id, v.VAL_ACCURACY) == ({4, 8} if self.keeps_runs else set())
        assert again.written_steps(run_id, v.TRAIN_LOSS) == ({4} if self.keeps_runs else set())
        assert again.written_steps(run_id, v.TEST_ACCURACY) == set()
        assert sorted(self.measurements(uri, sweep, "7a")) == (sorted(POINTS) if self.keeps_runs else [])

    @pytest.mark.parametrize("status", [FINISHED, FAILED, KILLED])
    def test_a_run_ends_and_can_be_opened_and_written_again(self, uri: str, sweep: str, status: str) -> None:
        backend = self.connected(uri, sweep)
        run_id = self.create_study(backend)
        backend.set_status(run_id, status, 5000)
        assert self.statuses(backend) == ({STUDY.study_key: status} if self.keeps_runs else {})
        backend.write(run_id, {}, {v.TAG_NOTE: "late"}, [])
        assert self.statuses(backend) == ({STUDY.study_key: status} if self.keeps_runs else {})
        backend.set_status(run_id, RUNNING)
        assert self.statuses(backend) == ({STUDY.study_key: RUNNING} if self.keeps_runs else {})

    def test_of_several_runs_of_a_key_the_one_in_use_stays(self, uri: str, sweep: str) -> None:
        study_id = self.create_study(self.connected(uri, sweep))
        lost = self.create_trial(self.connected(uri, sweep), "7a", study_id)  # its answer does not arrive
        backend = self.connected(uri, sweep)
        used = self.create_trial(backend, "7a", study_id)
        assert {run.id for run in backend.existing({"7a"}) if run.key == "7a"} == ({used} if self.keeps_runs else set())
        left = {run.id for run in self.connected(uri, sweep).existing(set())}
        assert left == ({study_id, used} if self.keeps_runs else set())
        assert lost == used or lost not in left

    def test_a_run_that_is_not_there_is_refused(self, uri: str, sweep: str) -> None:
        backend = self.connected(uri, sweep)
        if self.keeps_runs:
            with pytest.raises(Refused):
                backend.write("0" * 32, {}, {v.TAG_NOTE: "a note"}, POINTS)
            with pytest.raises(Refused):
                backend.set_status("0" * 32, FINISHED, 5000)

    def test_a_journal_that_is_copied_in_parts_and_again_is_there_once(self, uri: str, sweep: str) -> None:
        records = journal_of_low_data()
        keys = {r.study_key for r in records if isinstance(r, StudyRecord)}
        trials = {r.trial_key for r in records if isinstance(r, TrialRecord)}
        sessions = [
            ([r for r in records if not isinstance(r, EndRecord)][:-2], KILLED),  # two trials lack measurements
            (records, FINISHED),
            (records, FINISHED),
        ]
        for known, outcome in sessions:
            tracker = Tracker(uri, sweep, keys | trials, known)
            assert tracker.close(outcome, timeout_s=60), tracker.error
            runs = {run.key: run for run in self.connected(uri, sweep).existing(set())}
            assert {run.status for run in runs.values()} == ({outcome} if self.keeps_runs else set())
        expected = points_by_trial(records)
        assert set(expected) == trials
        for key in trials:
            assert sorted(self.measurements(uri, sweep, key)) == (expected[key] if self.keeps_runs else [])

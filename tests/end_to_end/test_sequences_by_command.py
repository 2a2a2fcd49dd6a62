"""Sweeps on sequences by the command of a user: without any file, and on recordings of a held-out speaker."""

from pathlib import Path

import numpy as np
from scipy.io import wavfile

from tests.support.scripts import call, sweep

SMOKE = ("--preset", "smoke")


def test_low_data_trains_on_sequences_that_need_no_file(tmp_path: Path) -> None:
    text = sweep(tmp_path, *SMOKE, "--dataset", "digit_rows", "--data-fraction", "0.05", "--min-steps", "4")
    assert "digit_rows, 8 samples of 8 channels, 10 classes" in text
    assert "3 of 3 trials done" in text
    assert "number of recordings" in text and " images" not in text


def test_a_plan_names_the_held_out_recordings_and_a_bad_pattern_is_one_line(tmp_path: Path) -> None:
    (folder := tmp_path / "spoken").mkdir()
    for digit, speaker, index in np.ndindex(2, 3, 9):
        samples = (1000 * (index + 1) * np.sin(np.arange(90))).astype(np.int16)
        wavfile.write(folder / f"{digit}_{speaker}_{index}.wav", 8000, samples + np.int16(100 * speaker + digit))
    options = (*SMOKE, "--dry-run", "--dataset", str(folder), "--image-size", "96", "--test-pattern", "_2_")
    text = sweep(tmp_path, *options, "--label-pattern", r"^(\d)_")
    assert "of 32 for training, 4 for validation, 18 for testing" in text
    assert "54 padded with their last value" in text
    ended = call(tmp_path, *options)
    assert ended.exit_code == 2 and "give --label-pattern" in ended.errors
    assert len(ended.errors.strip().splitlines()) == 1
    assert not (tmp_path / "storage").exists()

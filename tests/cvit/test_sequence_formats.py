"""Data sets of sequences in every format: what is read, how lengths are made equal, and the one line of each error."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from cvit.data.datasets import DataError, Dataset, DatasetInfo, describe, load

RNG = np.random.default_rng(0)
X_TRAIN = RNG.normal(size=(12, 2, 20)).astype(np.float32)
X_TEST = RNG.normal(size=(6, 2, 20)).astype(np.float32)
Y_TRAIN = np.array(["10", "2", "b"] * 4)
Y_TEST = np.array(["2", "b", "10"] * 2)


def read(place: Path, **options: object) -> tuple[DatasetInfo, Dataset]:
    info = describe(str(place), "nowhere", download=False, **options)  # pyright: ignore[reportArgumentType]
    return info, load(info)


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **({"x_train": X_TRAIN, "y_train": Y_TRAIN, "x_test": X_TEST, "y_test": Y_TEST} | arrays))
    return path


def write_ts(path: Path, sequences: np.ndarray, labels: np.ndarray, header: str = "@classLabel true 2 10 b") -> None:
    rows = [
        ":".join([*(",".join("?" if np.isnan(v) else repr(float(v)) for v in row) for row in each), label])
        for each, label in zip(sequences, labels, strict=True)
    ]
    path.write_text("\n".join(["# made up", "@problemName Made", header, "@data", *rows]) + "\n")


def write_recordings(folder: Path, rate: int = 8000) -> Path:
    """Three speakers say two digits three times, in 16 bits, each recording as long as its index tells."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (digit, speaker, index) in enumerate(np.ndindex(2, 3, 3)):
        samples = (1000 * (number + 1) * np.sin(np.arange(90 + index))).astype(np.int16)
        wavfile.write(folder / f"{digit}_{speaker}_{index}.wav", rate, samples)
    return folder


def error_of(place: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read(place, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_npz_file_is_read_as_it_is_and_its_classes_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    info, data = read(save(tmp_path / "made.npz"))
    assert (info.name, info.dimensions, info.image_size, info.in_channels) == ("made", 1, 20, 2)
    assert (info.class_names, info.augmentation, info.notes) == (("2", "10", "b"), "shift", ())
    np.testing.assert_array_equal(data.train.images, X_TRAIN)
    np.testing.assert_array_equal(data.test.images, X_TEST)
    assert [info.class_names[label] for label in data.test.labels] == Y_TEST.tolist()
    assert describe("made", tmp_path, download=False).fingerprint == info.fingerprint


def test_the_archives_files_give_the_same_data_set_as_npz(tmp_path: Path) -> None:
    expected, data = read(save(tmp_path / "made.npz"))
    folder = tmp_path / "Made"
    folder.mkdir()
    write_ts(folder / "Made_TRAIN.ts", X_TRAIN, Y_TRAIN)
    write_ts(folder / "Made_TEST.ts", X_TEST, Y_TEST)
    for place in (folder, folder / "Made_TRAIN.ts", folder / "Made_TEST.ts"):
        info, read_again = read(place)
        assert (info.name, info.fingerprint) == ("Made", expected.fingerprint)
        np.testing.assert_array_equal(read_again.test.images, data.test.images)
    assert describe("Made", folder, download=False).fingerprint == expected.fingerprint


def test_int16_is_divided_by_full_scale_and_other_integers_are_not(tmp_path: Path) -> None:
    whole = RNG.integers(-9000, 9000, X_TRAIN.shape)
    _, as_int16 = read(save(tmp_path / "a.npz", x_train=whole.astype(np.int16)))
    np.testing.assert_array_equal(as_int16.train.images, whole.astype(np.float32) / 32768)
    _, as_int32 = read(save(tmp_path / "b.npz", x_train=whole.astype(np.int32)))
    np.testing.assert_array_equal(as_int32.train.images, whole.astype(np.float32))


@pytest.mark.parametrize("kind", ["npz", "ts"])
def test_missing_values_at_the_end_are_no_values_and_the_last_one_fills_up(tmp_path: Path, kind: str) -> None:
    shorter = X_TRAIN.copy()
    shorter[3, :, 15:] = np.nan
    path = tmp_path / ("made.npz" if kind == "npz" else "made_TRAIN.ts")
    if kind == "npz":
        save(path, x_train=shorter)
    else:
        write_ts(path, shorter, Y_TRAIN)
        write_ts(tmp_path / "made_TEST.ts", X_TEST, Y_TEST)
    info, data = read(path)
    (place,) = np.flatnonzero((data.train.images == shorter[3, 0, 0]).any(axis=(1, 2)))
    np.testing.assert_array_equal(data.train.images[place, :, :15], shorter[3, :, :15])
    assert (data.train.images[place, :, 15:] == shorter[3, :, 14:15]).all()
    assert "1 padded with their last value" in info.notes[0] and "15 to 20 samples" in info.notes[0]


def test_an_image_size_cuts_and_pads_sequences_and_changes_what_identifies_them(tmp_path: Path) -> None:
    path = save(tmp_path / "made.npz")
    known, _ = read(path)
    info, data = read(path, image_size=8)
    assert info.image_size == 8 and info.fingerprint != known.fingerprint and "18 cut" in info.notes[0]
    np.testing.assert_array_equal(data.train.images, X_TRAIN[:, :, :8])
    _, longer = read(path, image_size=30)
    np.testing.assert_array_equal(longer.test.images[:, :, 19:], np.repeat(X_TEST[:, :, 19:], 11, axis=2))
    assert describe(str(path), "nowhere", download=False, image_size=20).fingerprint == known.fingerprint


def test_patterns_find_the_classes_and_the_speakers_held_out(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "spoken")
    info, data = read(folder, label_pattern=r"^(\d)_", test_pattern=r"^\d_2_")
    assert (info.class_names, info.image_size) == (("0", "1"), 128)  # 92, made a multiple of 64
    assert (len(data.train.labels), len(data.test.labels)) == (12, 6)
    expected = wavfile.read(folder / "0_2_0.wav")[1].astype(np.float32) / 32768
    np.testing.assert_array_equal(data.test.images[0, 0, :90], expected)
    assert info.fingerprint != read(folder, label_pattern=r"^(\d)_", test_pattern=r"^\d_1_")[0].fingerprint
    by_speaker, _ = read(folder, label_pattern=r"(?<=_)\d(?=_)")
    assert by_speaker.class_names == ("0", "1", "2")


def test_folders_are_the_classes_of_recordings_as_of_images(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("test", 2)):
        for name in ("no", "yes"):
            (folder := tmp_path / "words" / split / name).mkdir(parents=True)
            for index in range(count):
                wavfile.write(folder / f"{index}.wav", 100, RNG.normal(size=(64, 2)).astype(np.float32))
    info, data = read(tmp_path / "words")
    assert (info.class_names, info.in_channels, info.image_size) == (("no", "yes"), 2, 64)
    assert (len(data.train.labels), len(data.test.labels)) == (10, 4)
    _, one_pool = read(tmp_path / "words" / "train")
    assert len(one_pool.train.labels) + len(one_pool.test.labels) == 10


@pytest.mark.parametrize(("dtype", "unit"), [(np.uint8, 128), (np.int16, 2**15), (np.int32, 2**31)])
def test_full_scale_is_one_in_any_number_of_bits(tmp_path: Path, dtype: type, unit: int) -> None:
    values = np.linspace(-0.5, 0.5, 64)
    for name in "ab":
        for index in range(5):
            (folder := tmp_path / "words" / name).mkdir(parents=True, exist_ok=True)
            samples = unit * values + (128 if dtype is np.uint8 else 0)
            wavfile.write(folder / f"{index}.wav", 100, samples.astype(dtype))
    _, data = read(tmp_path / "words")
    np.testing.assert_allclose(data.train.images[0, 0], values, atol=1 / unit)


def test_digit_rows_needs_no_file_and_has_the_pixels_of_digits() -> None:
    info, data = read(Path("digit_rows"))
    pictures = load(describe("digits", "nowhere", download=False))
    assert (info.dimensions, info.image_size, info.in_channels, info.num_classes) == (1, 8, 8, 10)
    np.testing.assert_array_equal(data.train.labels, pictures.train.labels)
    np.testing.assert_allclose(data.train.images.transpose(0, 2, 1) * 255, pictures.train.images[:, 0], atol=1e-4)


BROKEN = {
    "x_train": ({"x_train": X_TRAIN[0, 0]}, "has the shape (20,); sequences are (n, channels, length)"),
    "y_train": ({"y_train": Y_TRAIN[1:]}, "has the shape (11,), and x_train 12 sequences"),
    "text": ({"x_train": X_TRAIN.astype(str)}, "not numbers"),
    "floating labels": ({"y_train": np.arange(12.0)}, "labels are text or whole numbers"),
    "unknown class": ({"y_test": np.array(["2"] * 5 + ["c"])}, "test recordings of class 'c'"),
    "one class": ({"y_train": np.array(["2"] * 12), "y_test": np.array(["2"] * 6)}, "has 1 class"),
    "missing value": ({"x_train": np.where(np.arange(20) == 3, np.nan, X_TRAIN)}, "missing or infinite values"),
    "infinite value": ({"x_test": np.where(np.arange(20) == 19, np.inf, X_TEST)}, "recording 0 of x_test"),
    "channels": ({"x_test": X_TEST[:, :1]}, "need the same number"),
    "constant": ({"x_train": np.ones_like(X_TRAIN)}, "constant training recordings"),
    "no test recordings": ({"x_test": X_TEST[:0], "y_test": Y_TEST[:0]}, "no recordings for testing"),
    "objects": ({"y_train": Y_TRAIN.astype(object)}, "cannot be read"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_npz_file_is_one_line_that_names_the_fault(tmp_path: Path, fault: str) -> None:
    arrays, expected = BROKEN[fault]
    assert expected in error_of(save(tmp_path / "made.npz", **arrays))


def test_other_npz_files_are_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", arr_0=X_TRAIN)
    assert "lacks x_train and y_train: it holds arr_0" in error_of(tmp_path / "other.npz")
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 no archive")
    assert "cannot be read" in error_of(tmp_path / "damaged.npz")


@pytest.mark.parametrize(
    ("header", "rows", "expected"),
    [
        ("@timeStamps true", "1,2:a", "time stamps"),
        ("@classLabel false", "1,2:a", "no classes"),
        ("@classLabel true a", "1,2", "line 3 of"),
        ("@classLabel true a", "1,x:a", "could not convert"),
        ("@classLabel true a", "", "no recordings for training"),
    ],
)
def test_a_broken_ts_file_is_one_line(tmp_path: Path, header: str, rows: str, expected: str) -> None:
    (tmp_path / "made.ts").write_text(f"{header}\n@data\n{rows}\n")
    assert expected in error_of(tmp_path / "made.ts")


def test_faults_of_recordings_and_patterns_are_one_line(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "spoken")
    assert "give --label-pattern" in error_of(folder)
    assert "is no regular expression" in error_of(folder, label_pattern="(")
    assert "finds no class in 0_0_0.wav" in error_of(folder, label_pattern="^x")
    digit = r"^(\d)_"
    assert "finds none of 18 recordings" in error_of(folder, label_pattern=digit, test_pattern="x")
    assert "finds all of 18 recordings" in error_of(folder, label_pattern=digit, test_pattern="wav")
    assert "no WAV recordings" in error_of(save(tmp_path / "made.npz"), label_pattern=digit)
    wavfile.write(folder / "0_0_9.wav", 16000, np.arange(9, dtype=np.int16))
    assert "has 16000: resample them" in error_of(folder, label_pattern=digit)
    (folder / "0_0_9.wav").write_bytes(b"RIFF....")
    assert "0_0_9.wav cannot be read" in error_of(folder, label_pattern=digit)


def test_a_recording_that_changes_after_the_plan_is_refused(tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "spoken")
    info = describe(str(folder), "nowhere", download=False, label_pattern=r"^(\d)_")
    assert info.train_counts.sum() + info.num_test == 18
    wavfile.write(folder / "1_1_1.wav", 8000, np.arange(99, dtype=np.int16))
    with pytest.raises(DataError, match=r"1_1_1.wav has changed"):
        load(info)

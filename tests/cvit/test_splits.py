"""Training, test and validation images are found in the layouts in which data sets are published."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvit.data.images import DataError
from cvit.data.splits import Splits, find_splits, split_name
from tests.support.images import alternating, error_of, info_of, loaded, picture, pictures, write_parquet

SPELLINGS = {
    "train": ("train", "training", "trainset"),
    "test": ("test", "testing", "testset"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
}

ONE_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000f494441547801010400fbff000a141e0068003de80cbb830000000049454e44ae426082"
)
"""A PNG file; written out, since its bytes decide the fingerprint."""


def write_images(folder: Path, count: int, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(first + i).save(folder / f"{first + i}.png")


def write_split(root: Path, folder: str, count: int, classes: Sequence[str] = ("cat", "dog")) -> None:
    """Writes `count` images of each class; no two splits have an image in common."""
    for number, name in enumerate(classes):
        write_images(root / folder / name, count, first=1000 * number + sum(map(ord, folder)) * 10_000)


def counts(path: Path) -> tuple[int, int]:
    info = info_of(path)
    return len(info.train_labels), info.num_test


# Words


@pytest.mark.parametrize("role", SPELLINGS)
@pytest.mark.parametrize("frame", ["{}", "seg_{}", "mnist-{}", "{}.images", "{} data", "my.{}-set", "{}2014", "x_{}"])
@pytest.mark.parametrize("change", [str.lower, str.upper, str.title])
def test_words_are_read_in_any_frame_and_case(role: str, frame: str, change: object) -> None:
    assert callable(change)
    for word in SPELLINGS[role]:
        assert split_name(frame.format(change(word))).role == role


def test_words_are_read_in_camel_case() -> None:
    names = ("segTrain", "TrainImages", "XTest", "TestSet", "myValSplit")
    assert [split_name(name).role for name in names] == ["train", "train", "test", "test", "validation"]


@pytest.mark.parametrize("name", ["trainspotting", "contest", "Testarossa", "valley", "device", "evaluator"])
def test_words_within_words_are_no_splits(name: str) -> None:
    assert split_name(name).role is None


def test_images_for_training_and_validation_together_are_training_images() -> None:
    assert [split_name(name).role for name in ("trainval", "train_val", "train-valid")] == ["train"] * 3


tokens = st.lists(st.sampled_from(("mnist", "small", "images", "v2", "rgb")), max_size=2)


@given(tokens, tokens, st.sampled_from("-_. "), *map(st.sampled_from, SPELLINGS.values()))
def test_names_that_differ_by_the_word_are_splits(
    before: list[str], after: list[str], separator: str, train: str, test: str, validation: str
) -> None:
    names = [separator.join((*before, word, *after)) for word in (validation, test, train)]
    assert find_splits(names, "x") == Splits((names[2],), (names[1],), (names[0],))
    assert find_splits([*names, "readme"], "x") == find_splits(names, "x")


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train", "test", "train_extra"], Splits(("train",), ("test",))),
        (["Training", "Test", "test-multiple_fruits"], Splits(("Training",), ("Test",))),
        (["train_images", "test"], Splits(("train_images",), ("test",))),
        (["train.X1", "train.X2", "val.X"], Splits(("train.X1", "train.X2"), (), ("val.X",))),
        (["my_test_train", "my_test_test"], Splits(("my_test_train",), ("my_test_test",))),
        (["partial-train", "partial-test"], Splits(("partial-train",), ("partial-test",))),
        (["bus", "car", "train"], Splits(("train",))),
        (["cifar10-train", "cifar10-test", "cifar100-train"], Splits(("cifar10-train",), ("cifar10-test",))),
        (["train-part1", "train-part2", "test"], Splits(("train-part1", "train-part2"), ("test",))),
        (["train", "test1"], Splits(("train",), ("test1",))),
        (["test", "val"], Splits()),
    ],
)
def test_splits_of_published_names(names: list[str], splits: Splits) -> None:
    assert find_splits(names, "x") == splits


@pytest.mark.parametrize(
    "names",
    [
        ["train", "Train", "test"],
        ["train", "training", "test"],
        ["a_train", "a_test", "b_train", "b_test"],
        ["train_a", "train_b"],
        ["fold1_train", "fold1_test", "fold2_train", "fold2_test"],
        ["train2014", "val2014", "train2017", "val2017"],
        ["mnisttrain", "mnisttest"],
        ["train", "trainval", "test"],
    ],
)
def test_names_that_leave_a_choice_are_refused(names: list[str]) -> None:
    with pytest.raises(DataError, match=r"^x holds .*(may each be|may be)"):
        find_splits(names, "x")


# Image folders


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Training", "Testing"),  # brain tumours
        ("seg_train/seg_train", "seg_test/seg_test"),  # Intel's landscapes, as they are unpacked
        ("TRAIN", "VALIDATION"),
        ("train_set", "dev_set"),
        ("training_images", "eval_images"),
        ("fruits-Training", "fruits-Test"),
        ("trainSet", "testSet"),
        ("train/images", "valid/images"),
        ("archive/chest_xray/train", "archive/chest_xray/test"),
    ],
)
def test_splits_of_an_image_folder_in_any_spelling(train: str, test: str, tmp_path: Path) -> None:
    write_split(tmp_path, train, 3)
    write_split(tmp_path, test, 2)
    data = loaded(tmp_path)
    assert data.info.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0] * 3 + [1] * 3 and data.test.labels.tolist() == [0] * 2 + [1] * 2
    assert data.info.notes == () or data.info.notes[0].startswith("tested on the images in")


def test_what_is_not_used_is_named(tmp_path: Path) -> None:
    for folder, count in (("seg_train/seg_train", 3), ("seg_test/seg_test", 2), ("seg_val", 4)):
        write_split(tmp_path, folder, count)
    write_images(tmp_path / "seg_pred/seg_pred", 5)
    assert counts(tmp_path) == (6, 4)
    assert info_of(tmp_path).notes == ("not used: seg_pred (5 images) and seg_val (8 images)",)


def test_validation_is_tested_on_where_there_are_no_test_images_and_that_is_said(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 3)
    write_split(tmp_path, "valid", 2)
    assert counts(tmp_path) == (6, 4)
    assert info_of(tmp_path).notes == ("tested on the images in valid, since there are no other test images",)
    write_images(tmp_path / "test", 7)  # as for a competition, without classes
    assert counts(tmp_path) == (6, 4)
    assert info_of(tmp_path).notes[1] == "not used: test (7 images, without class folders)"


def test_test_images_without_classes_are_not_used(tmp_path: Path) -> None:
    write_split(tmp_path, "asl_alphabet_train/asl_alphabet_train", 10)
    write_images(tmp_path / "asl_alphabet_test/asl_alphabet_test", 5)
    assert counts(tmp_path) == (16, 4)
    held_out, unused = info_of(tmp_path).notes
    assert "held out" in held_out and unused == "not used: asl_alphabet_test (5 images, without class folders)"


def test_two_folders_of_validation_images_are_a_choice(tmp_path: Path) -> None:
    for folder in ("train", "dev", "eval"):
        write_split(tmp_path, folder, 2)
    assert "dev and eval, which may each be the validation images" in error_of(tmp_path)
    write_split(tmp_path, "test", 3)
    assert counts(tmp_path) == (4, 6)
    assert info_of(tmp_path).notes == ("not used: dev (4 images) and eval (4 images)",)


@pytest.mark.parametrize(
    "classes",
    [
        ("bus", "car", "train"),
        ("trainspotting", "contest", "Test-tube"),
        ("valid", "invalid"),
        ("Test-tube", "Test-strip"),
        ("training-shoes", "testing-kit"),
        ("device", "valley"),
        ("train_interior", "train_station", "test_kitchen", "training_ground"),  # as in SUN397
    ],
)
def test_classes_may_be_called_like_splits(classes: tuple[str, ...], tmp_path: Path) -> None:
    write_split(tmp_path, "", 5, classes)
    assert info_of(tmp_path).class_names == tuple(sorted(classes))
    assert counts(tmp_path) == (4 * len(classes), len(classes))


def test_a_class_may_be_called_train_in_splits_too(tmp_path: Path) -> None:
    for folder in ("train", "test"):
        write_split(tmp_path, folder, 2, ("bus", "car", "train"))
    assert info_of(tmp_path).class_names == ("bus", "car", "train") and counts(tmp_path) == (6, 6)
    assert info_of(tmp_path / "train").notes == ("not used: test, beside it; give the folder to use all splits",)


def test_a_folder_beside_training_images_alone_is_named(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 10)
    write_images(tmp_path / "samples", 3)
    assert info_of(tmp_path).class_names == ("cat", "dog")
    assert info_of(tmp_path).notes == ("not used: samples (3 images)",)


@pytest.mark.parametrize(
    ("splits", "images", "reason"),
    [
        ([], ["train", "test"], "train holds images without class folders"),
        ([], ["seg_train", "seg_test", "seg_pred"], "seg_train holds images without class folders"),
        (["test", "val"], [], "holds test and val but no training images"),
        (["seg_test", "seg_val"], [], "holds seg_test and seg_val but no training images"),
        (["test"], [], "holds test but no training images"),
        ([], ["cat", "dog", "test"], "test beside cat and dog: test images or a class?"),
        (["test"], ["cat", "dog"], "put cat and dog into a folder train"),
        (["cats/train", "cats/test", "dogs/train", "dogs/test"], [], "put the classes into the splits"),
        (
            ["casting/casting/train", "casting/casting/test", "casting_512"],
            [],
            "casting holds train and test: give",
        ),
        (["rps/rps", "rps-test-set/rps-test-set"], ["validation"], "rps-test-set beside rps"),
        ([], ["cat", "dog", "validation"], "validation beside cat and dog: test images or a class?"),
        ([], ["train/train", "test1/test1"], "train holds images without class folders"),
        (["train", "train/val", "test"], [], "put cat and dog into a folder train"),
        ([], ["train"], "train holds images without class folders"),
        (["train_station"], ["train_interior", "abbey"], "train_station with folders in it beside abbey and train_int"),
        (["cat", "dog", "train"], [], None),
    ],
)
def test_folders_that_leave_a_choice_are_refused(
    splits: list[str], images: list[str], reason: str | None, tmp_path: Path
) -> None:
    for folder in splits:
        write_split(tmp_path, folder, 2)
    for folder in images:
        write_images(tmp_path / folder, 4)
    if reason is None:  # all have the same folders in them: train is one split, the others are not used
        assert info_of(tmp_path).notes[-1] == "not used: cat (4 images) and dog (4 images)"
    else:
        assert reason in error_of(tmp_path)


def test_a_folder_named_train_beside_folders_of_another_structure_is_a_choice(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 2, ("steam", "diesel"))
    write_split(tmp_path, "bus", 2, ("school", "city"))
    assert "training images or a class?" in error_of(tmp_path)


def test_a_class_named_train_with_folders_and_images_in_it_is_a_choice(tmp_path: Path) -> None:
    for folder in ("bus", "car", "train", "train/old"):
        write_images(tmp_path / folder, 5)
    assert "holds train with folders in it beside bus and car: training images or a class?" in error_of(tmp_path)


def test_classes_with_the_same_folders_in_them_are_said(tmp_path: Path) -> None:
    """They may be classes of pictures by the same persons, or the folders in them the classes."""
    for folder in ("color", "grayscale"):
        write_split(tmp_path, folder, 5, ("apple", "cherry"))
    assert info_of(tmp_path).notes == (
        "the classes are color and grayscale, though each has the folders apple and cherry in it",
    )


def test_tiny_imagenet_as_it_is_unpacked_is_told_what_to_move(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    for name in ("n01443537", "n01629819"):
        write_images(root / "train" / name / "images", 3)
        (root / "train" / name / f"{name}_boxes.txt").write_text("")
    for folder in ("val", "test"):
        write_images(root / folder / "images", 4)
    (root / "val/val_annotations.txt").write_text("val_0.JPEG\tn01443537\t0\t32\t44\t62\n")
    message = error_of(tmp_path)
    assert f"{root}/val holds images without class folders" in message
    assert "val/val_annotations.txt may tell their classes: move each image to val/<class>/" in message
    for i, path in enumerate(sorted((root / "val/images").iterdir())):
        folder = root / "val" / ("n01443537", "n01629819")[i % 2]
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    (root / "val/images").rmdir()
    assert counts(tmp_path) == (6, 4)
    assert "not used: test (4 images, without class folders)" in info_of(root).notes
    assert "passed over: 3 .txt" in info_of(root).notes


def test_folders_and_files_that_were_read_before_keep_their_fingerprints(tmp_path: Path) -> None:
    """Stage keys hold them. The numbers were computed by the version that read few spellings of splits."""
    for name in ("train/cat/0", "train/cat/1", "train/dog/a/0", "train/dog/b/0", "val/cat/0", "val/dog/2"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(ONE_PIXEL + name.encode())
    assert info_of(tmp_path).fingerprint == "39fded0ebd138498"
    assert info_of(tmp_path / "train", image_size=2).fingerprint == "5add7adae52d341d"


# Parquet


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("mnist_train.parquet", "mnist_test.parquet"),
        ("Train.parquet", "Testing.parquet"),
        ("data/train-00000-of-00001-b42cb6d9a8a5d1a5.parquet", "data/test-00000-of-00001-aaaaaaaaaaaaaaaa.parquet"),
        ("train/0000.parquet", "test/0000.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("plain_text/partial-train/0000.parquet", "plain_text/partial-test/0000.parquet"),
        ("data/train/part-0.parquet", "data/dev/part-0.parquet"),
        ("train-0.parquet", "eval-0.parquet"),
        ("train.parquet", "valid/0.parquet"),
        ("x.train.parquet", "x.validation.parquet"),
        ("TRAIN.PARQUET", "VAL.PARQUET"),
    ],
)
def test_splits_in_parquet_in_any_spelling(train: str, test: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / "a" / train, pictures(6), alternating(6))
    write_parquet(tmp_path / "a" / test, pictures(2, 50), [0, 1])
    data = loaded(tmp_path / "a")
    assert data.train.labels.tolist() == alternating(6) and data.test.labels.tolist() == [0, 1]
    assert all(note.startswith("tested on the images in") for note in data.info.notes)


def test_parquet_files_that_are_not_used_are_named(tmp_path: Path) -> None:
    for number, name in enumerate(("train", "test", "dev", "eval", "unsupervised")):
        write_parquet(tmp_path / f"a/{name}-00000-of-00001.parquet", pictures(4, 10 * number), alternating(4))
    assert counts(tmp_path / "a") == (4, 4)
    assert info_of(tmp_path / "a").notes == ("not used: dev, eval and unsupervised",)
    (tmp_path / "a/test-00000-of-00001.parquet").unlink()
    assert "dev and eval, which may each be the validation images" in error_of(tmp_path / "a")


def test_a_parquet_file_given_alone_names_the_other_splits(tmp_path: Path) -> None:
    for name in ("mnist_train", "mnist_test", "cifar_test"):
        write_parquet(tmp_path / f"{name}.parquet", pictures(10), alternating(10))
    notes = info_of(tmp_path / "mnist_train.parquet").notes
    assert notes == ("not used: mnist_test.parquet, beside it; give the folder to use all splits",)
    assert "mnist_test, mnist_train" not in error_of(tmp_path / "mnist")


@pytest.mark.parametrize(
    ("labels", "column"), [([-1, -1, -1], "label"), ([None, None, None], "label"), ([0, 0, 0], "id")]
)
def test_test_images_without_labels_are_replaced_by_labelled_ones(
    labels: list[int | None], column: str, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "a/train.parquet", pictures(20), alternating(20))
    write_parquet(tmp_path / "a/test.parquet", pictures(3, 60), labels, label_column=column)
    assert counts(tmp_path / "a") == (16, 4)
    assert info_of(tmp_path / "a").notes == (
        "not used: test, whose images have no labels",
        "test images are held out of the training images",
    )
    write_parquet(tmp_path / "a/validation.parquet", pictures(2, 50), [0, 1])
    data = loaded(tmp_path / "a")
    assert len(data.train.labels) == 20 and data.test.labels.tolist() == [0, 1]
    assert data.info.notes == (
        "not used: test, whose images have no labels",
        "tested on the images in validation, since there are no other labelled test images",
    )


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("a_train", "a_test", "b_train", "b_test"), "may each be the training images"),
        (("train_fold_1", "test_fold_1", "train_fold_2", "test_fold_2"), "may each be the training images"),
        (("mnisttrain", "mnisttest"), "may be training and test images of one data set"),
        (("data", "test"), "no train*.parquet"),
        (("test/0", "validation/0"), "no training images"),
        (("train-00000-of-00001", "train-00000-of-00002"), "in 1 and 2 files at once"),
    ],
)
def test_parquet_files_that_leave_a_choice_are_refused(names: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    for name in names:
        write_parquet(tmp_path / f"a/{name}.parquet", pictures(4), alternating(4))
    assert reason in error_of(tmp_path / "a")


def test_missing_shards_are_said(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a/train-00000-of-00003.parquet", pictures(10), alternating(10))
    write_parquet(tmp_path / "a/train-00002-of-00003.parquet", pictures(10, 10), alternating(10))
    assert counts(tmp_path / "a") == (16, 4) and info_of(tmp_path / "a").notes == ("train: 2 of 3 files are there",)

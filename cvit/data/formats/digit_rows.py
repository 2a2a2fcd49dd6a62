"""The digits of scikit-learn as sequences of rows, which need neither a download nor a data folder."""

from cvit.data.formats import Format, Place
from cvit.data.formats.digits import NAME as DIGITS
from cvit.data.formats.digits import open_digits
from cvit.data.images import Target
from cvit.data.sequences import stored_sequences
from cvit.data.stored import Stored

NAME = "digit_rows"


def open_digit_rows(place: Place) -> Stored | None:
    """Reads 1,797 scanned digits as sequences of 8 samples, the rows from top to bottom, with 8 channels, the columns;
    one pool.

    Raises:
        DataError: as for the digits.
    """
    if place.name != NAME:
        return None
    digits = open_digits(Place(DIGITS, None, place.data_dir, place.download))
    assert digits is not None
    images = digits.train.pixels(Target(1, 8, False, None))
    rows = (images[:, 0].transpose(0, 2, 1) / 255).astype("float32")
    labels = [digits.class_names[label] for label in digits.train.labels]
    names = [f"digit {index}" for index in range(len(rows))]
    return stored_sequences([([*rows], labels, names)], NAME, NAME)


FORMAT = Format(open=open_digit_rows, order=0, known={NAME: "shift"})

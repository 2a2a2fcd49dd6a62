"""The sweep full_grid: accuracy over data fraction, patch size, number of heads and init scheme at once."""

from cvit.analysis.questions import Question
from cvit.analysis.store.axes import FRACTION, NUM_HEADS, PATCH_SIZE, SCHEME

QUESTION = Question(
    order=70,
    axes=(FRACTION, PATCH_SIZE, NUM_HEADS, SCHEME),
    caption="Test accuracy against the number of heads, a row per patch size, a column per share of the training "
    "images. Means over seeds with 95 % intervals; dots are single trials.",
)

"""How each sweep of trainings is shown in tables. One that is missing here has the general table."""

from collections.abc import Mapping

from analysis.display.accuracy_tables import Layout
from analysis.display.wording import FRACTION, NUM_HEADS, PATCH_SIZE, SCHEME
from analysis.questions import head_count, init_schemes, no_warmup, patch_size

LAYOUTS: Mapping[str, Layout] = {
    "low_data": Layout(axes=(FRACTION, SCHEME)),
    "no_warmup": no_warmup.LAYOUT,
    "head_count": head_count.LAYOUT,
    "patch_size": patch_size.LAYOUT,
    "init_schemes": init_schemes.LAYOUT,
    "full_grid": Layout(axes=(FRACTION, PATCH_SIZE, NUM_HEADS, SCHEME)),
}

"""How each sweep of trainings is shown in tables. One that is missing here has the general table."""

from collections.abc import Mapping

from analysis import head_count, patch_size
from analysis.axes import FRACTION, SCHEME
from analysis.tables import Layout

LAYOUTS: Mapping[str, Layout] = {
    "low_data": Layout(axes=(FRACTION, SCHEME)),
    "head_count": head_count.LAYOUT,
    "patch_size": patch_size.LAYOUT,
}

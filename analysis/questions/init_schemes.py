"""The sweep init_schemes: what every init scheme gains over random initialisation, references beside them."""

from dataclasses import replace

from analysis.display.accuracy_tables import Comparison, Layout
from analysis.display.wording import FRACTION, SCHEME
from analysis.statistics.stats import Summary, paired_difference
from analysis.statistics.studies import BASELINE, Study


def gains_over_random(study: Study) -> list[Summary]:
    """Every scheme less random initialisation on the same seeds, a summary per row and scheme that has both."""
    found = [
        replace(gain, axes={**gain.axes, SCHEME: scheme})
        for scheme in study.schemes
        if scheme != BASELINE
        for gain in paired_difference(study.results, SCHEME, scheme, BASELINE)
    ]
    return sorted(found, key=lambda cell: (study.row_of(cell), study.schemes.index(cell.axes[SCHEME])))


LAYOUT = Layout(
    axes=(FRACTION, SCHEME),
    gain=Comparison(
        kind="gain_over_random",
        heading="scheme",
        summaries=gains_over_random,
        title="Gain over random initialisation, on the same seeds",
    ),
    across=FRACTION,
    notes="References are other architectures with the same number of steps on the same images.",
)

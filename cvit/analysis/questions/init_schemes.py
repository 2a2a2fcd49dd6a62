"""The sweep init_schemes: the gain of every init scheme, and of the references, over random initialisation."""

from dataclasses import replace

from cvit.analysis.display.accuracy_tables import Comparison, Layout
from cvit.analysis.questions import Question
from cvit.analysis.statistics.stats import Summary, paired_difference
from cvit.analysis.statistics.studies import BASELINE, Study
from cvit.analysis.store.axes import FRACTION, SCHEME


def gains_over_random(study: Study) -> list[Summary]:
    """Every scheme minus random initialisation on the same seeds, a summary per row and scheme that has both."""
    gains = [
        replace(gain, place={**gain.place, SCHEME: scheme})
        for scheme in study.schemes
        if scheme != BASELINE
        for gain in paired_difference(study.results, SCHEME, scheme, BASELINE)
    ]
    return sorted(gains, key=study.order_of)


QUESTION = Question(
    order=60,
    axes=(FRACTION, SCHEME),
    layout=Layout(
        gain=Comparison(
            kind="gain_over_random",
            heading="scheme",
            summaries=gains_over_random,
            title="Gain over random initialisation, on the same seeds",
        ),
        across=FRACTION,
        notes="References are other architectures with the same number of steps on the same images.",
    ),
    caption="Left: test accuracy of all init schemes against the share of the training images. Right: gain "
    "over random initialisation on the same seeds. Means with 95 % intervals. References are dotted.",
)

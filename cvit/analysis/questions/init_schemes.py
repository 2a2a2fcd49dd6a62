"""The sweep init_schemes: the gain of every init scheme, and of the references, over random initialisation."""

from cvit.analysis.display.accuracy_tables import Comparison, Layout
from cvit.analysis.questions import Question
from cvit.analysis.statistics.studies import gains_over
from cvit.analysis.store.axes import FRACTION, SCHEME

QUESTION = Question(
    order=60,
    axes=(FRACTION, SCHEME),
    layout=Layout(
        gain=Comparison(
            kind="gain_over_random",
            heading="scheme",
            summaries=gains_over,
            title="Gain over random initialisation, on the same seeds",
        ),
        across=FRACTION,
        notes="References are other architectures with the same number of steps on the same images.",
    ),
    caption="Left: test accuracy of all init schemes against the share of the training images. Right: gain "
    "over random initialisation on the same seeds. Means with 95 % intervals. References are dotted.",
)

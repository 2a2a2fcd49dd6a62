"""Makes the tables, figures and verdicts of every sweep in a tracking store, and one page with all of them.

python analysis/make_tables.py                      # sqlite:///mlflow.db here, or MLFLOW_TRACKING_URI
python analysis/make_tables.py --storage runs       # from the journal, without MLflow
python analysis/make_tables.py --strict             # exit code 3 when a claim of the paper does not hold

The code is in cvit/analysis/, so that an installation has it too.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # a copy of the tree runs its own code, not an installed one

from cvit.analysis.make_tables import run  # noqa: E402

if __name__ == "__main__":
    run()

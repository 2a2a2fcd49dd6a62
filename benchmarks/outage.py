"""Does training slow down while the tracker does not work?

python benchmarks/outage.py
python benchmarks/outage.py --repeats 3 --json outage.json

Each arm is `python sweeps/low_data.py` on the same grid with a storage of its own. The arms differ in the tracker, from
the first to the last moment of the sweep:

healthy   an MLflow store that works (SQLite)
refused   a server's address where nothing listens
errors    a server that answers 500 to everything
hanging   a server that takes requests and never answers

The result is the time between the first and the last measurement of the training, by their time stamps. It leaves out
start-up and the wait for the tracker at the end (`CLOSE_TIMEOUT_S` in cvit/engine/book.py).
"""

import contextlib
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import common
from benchmarks.arms.grid import SCRIPT, planned
from benchmarks.processes import QUIET, observe

GRID = ("--preset", "laptop", "--data-fraction", "0.05", "--seeds", "4", "--budget-unit", "steps")
HEALTHY = "healthy"

app = common.new_app()


@app.default
def outage(*, repeats: common.Repeats = 1, json: common.Json = None) -> None:
    """Seconds of training with a tracker that works, and with three that do not."""
    common.check(json, repeats=repeats)
    before = common.machine()
    with _server(answers=True) as errors, _server(answers=False) as hanging, _unused_port() as refused:
        uris = {"refused": refused, "errors": errors, "hanging": hanging}
        turns = common.interleaved(
            {HEALTHY: partial(_turn, None)} | {arm: partial(_turn, uri) for arm, uri in uris.items()}, repeats
        )
    arms = {arm: {"seconds": common.figure(seconds)} for arm, seconds in turns.items()}
    healthy = arms[HEALTHY]["seconds"]["median"]
    ratios = {f"ratio_{arm}_vs_{HEALTHY}": arms[arm]["seconds"]["median"] / healthy for arm in uris}
    rows = [
        [arm, common.with_spread(of_arm["seconds"]), f"{of_arm['seconds']['median'] / healthy:.2f}"]
        for arm, of_arm in arms.items()
    ]
    columns = ["tracker", "seconds of training", f"of {HEALTHY}"]
    common.show(f"Training while the tracker is out of order; median of n = {repeats}", columns, rows)
    common.write_json(json, "outage", before, {"n": repeats, "grid": GRID, "arms": arms, **ratios})


def _turn(tracking_uri: str | None) -> float:
    """Seconds between the first and the last measurement of a sweep."""
    with tempfile.TemporaryDirectory(prefix="cvit-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        uri = tracking_uri or f"sqlite:///{folder / 'mlflow.db'}"
        options = [*GRID, "--storage", str(folder / "storage"), "--tracking-uri", uri]
        observe([sys.executable, str(common.ROOT / SCRIPT), *options], folder, QUIET)
        progress, _, _ = planned(options)
        if progress.todo:
            raise RuntimeError(f"{len(progress.todo)} stages were not trained")
        times_ms = [time_ms for result in progress.results.values() for *_, time_ms in result.points]
        return (max(times_ms) - min(times_ms)) / 1000


@contextlib.contextmanager
def _server(answers: bool) -> Iterator[str]:
    """The address of a server on this machine that answers everything by an error, or nothing at all."""
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            if not answers:
                ended.wait()
                self.close_connection = True
                return
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_error(500)

        do_GET = do_POST = _answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            ended.set()
            server.shutdown()


@contextlib.contextmanager
def _unused_port() -> Iterator[str]:
    """An address on this machine that is taken, so that nobody else gets it, and on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


if __name__ == "__main__":
    common.run_app(app)

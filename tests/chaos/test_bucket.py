"""A sweep whose storage is a bucket that refuses it again and again ends like an undisturbed one."""

import random
import subprocess
from pathlib import Path

import pytest

from cvit.engine import exit_codes
from tests.chaos.campaign import SESSION_TIMEOUT_S, Campaign
from tests.chaos.faults import kill_driver, kill_worker
from tests.chaos.ledger import LEDGER
from tests.chaos.test_chaos import FAULTS, PAIRS, SEED, undisturbed
from tests.support.faulty_s3 import CUT, SLOW_DOWN, FaultyS3, Refusal, faulty_s3, set_credentials
from tests.support.plans import make_plan

REFUSALS: dict[Refusal, tuple[str, ...]] = {
    (403, "AccessDenied"): ("AWS Error ACCESS_DENIED",),
    (400, "ExpiredToken"): ("ExpiredToken",),
    (404, "NoSuchBucket"): ("AWS Error NO_SUCH_BUCKET", "there is no bucket 'cvit'"),
    (403, "InvalidAccessKeyId"): ("AWS Error INVALID_ACCESS_KEY_ID",),
    (403, "QuotaExceeded"): ("QuotaExceeded",),
    (403, "SignatureDoesNotMatch"): ("AWS Error SIGNATURE_DOES_NOT_MATCH",),
}
"""The reasons that a sweep may name for an answer, by the answer: they differ by the request that was refused."""
UNSTEADY = 0.03
"""The share of requests whose connection is cut, and of those that are told to come back later."""


def refuse(server: FaultyS3, refusal: Refusal, campaign: Campaign, process: "subprocess.Popen[str]") -> None:
    """Refuses every request from a moment of the training on: the sweep ends in one line that names the reason, unless
    it was about to end anyway."""
    if not campaign.wait_for_training(process):
        return
    usual, server.fault = server.fault, lambda method, path: refusal
    LEDGER.faults["bucket refuses"] += 1
    process.wait(timeout=SESSION_TIMEOUT_S)
    server.fault = usual
    assert process.returncode in (exit_codes.FINISHED, exit_codes.FAILED_TRIALS)


@pytest.mark.skipif(not FAULTS, reason="part of the long form: make chaos")
@pytest.mark.timeout(3600)
def test_a_bucket_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_credentials(monkeypatch)
    options = (*PAIRS, "--min-steps", "1500")
    reference = undisturbed(tmp_path / "undisturbed", options)
    (tmp_path / "sweep").mkdir()
    draw = random.Random(SEED)

    def unsteady(method: str, path: str) -> str | None:
        drawn = draw.random()
        return CUT if drawn < UNSTEADY else SLOW_DOWN if drawn < 2 * UNSTEADY else None

    with faulty_s3() as server:
        server.fault = unsteady
        url = server.url("storage")
        plan = make_plan(tmp_path / "plan", *options)
        with Campaign(tmp_path / "sweep", options, plan, reference, seed=SEED, url=url) as campaign:
            for refusal, reasons in REFUSALS.items():
                code = campaign.session(
                    *([kill_worker] if draw.random() < 0.5 else []),
                    lambda c, process, refusal=refusal: refuse(server, refusal, c, process),
                )
                if code == exit_codes.FINISHED:
                    break
                assert code == exit_codes.FAILED_TRIALS
                assert "Traceback" not in campaign.said
                assert any(reason in campaign.said for reason in reasons), campaign.said
            campaign.session(kill_driver)
            server.fault = lambda method, path: None
            campaign.finish()
        LEDGER.failed_requests += server.faults[CUT] + server.faults[SLOW_DOWN]

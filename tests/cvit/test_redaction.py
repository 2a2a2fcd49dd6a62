"""No password is printed, whatever it is; text without one stays as it is."""

import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvit.engine.tracking.mlflow_views import page
from cvit.redaction import redacted, without_secrets
from cvit.tasks import TASK_NAMES, parameters_of_task

NAMES = st.text(st.characters(categories=["L", "N"], include_characters="-._~%+"), min_size=1)
ANY = st.text(min_size=1).filter(lambda text: "://" not in text)
WITHOUT_BLANKS = ANY.map(lambda text: "".join(text.split())).filter(bool)
SCHEMES = st.sampled_from(["http", "https", "postgresql+psycopg2", "mysql", "s3"])
RESTS = st.sampled_from(["", "/path", ":80/a?b=c"])
SECRET = "s3cr3t"
PARAMETERS = [
    *("password", "passwd", "pwd", "token", "secret", "key", "api_key", "odbc_connect", "sig", "auth", "signature"),
    *("X-Amz-Credential", "X-Amz-Signature", "X-Amz-Security-Token", "access_token", "AccountKey", "sslpassword"),
]


@given(NAMES, NAMES, SCHEMES, RESTS)
def test_a_password_is_left_out_whatever_it_is(user: str, password: str, scheme: str, rest: str) -> None:
    assert redacted(f"it's '{scheme}://{user}:{password}@host{rest}'.") == f"it's '{scheme}://***@host{rest}'."


@given(ANY, ANY, SCHEMES, RESTS)
def test_no_sign_of_a_password_gives_it_away(user: str, password: str, scheme: str, rest: str) -> None:
    assert redacted(f"{scheme}://{user}:{password}@host{rest}") == f"{scheme}://***@host{rest}"
    assert redacted(f"{scheme}://:{password}@host{rest}") == f"{scheme}://***@host{rest}"


@given(WITHOUT_BLANKS, WITHOUT_BLANKS, SCHEMES, RESTS)
def test_no_sign_of_a_password_gives_it_away_within_a_sentence(
    user: str, password: str, scheme: str, rest: str
) -> None:
    address, hidden = f"{scheme}://{user}:{password}@host{rest}", f"{scheme}://***@host{rest}"
    assert redacted(f"at {address} since 12:30, by a@b") == f"at {hidden} since 12:30, by a@b"
    assert redacted(f"store {address}: refused") == f"store {hidden}: refused"


@given(NAMES, ANY.filter(lambda text: "\n" not in text), SCHEMES)
def test_a_command_that_is_quoted_for_a_shell_has_no_password(user: str, password: str, scheme: str) -> None:
    command = shlex.join(
        ["python", "x.py", "--tracking-uri", f"{scheme}://{user}:{SECRET}{password}@host/x", "--seeds"]
    )
    assert SECRET not in redacted(command)
    assert redacted(command).startswith("python x.py --tracking-uri ")


@given(NAMES, st.sampled_from(PARAMETERS), WITHOUT_BLANKS.filter(lambda text: "&" not in text), st.sampled_from("?&#"))
def test_no_sign_of_a_parameter_gives_it_away(host: str, name: str, value: str, before: str) -> None:
    for text in (f"{SECRET}{value}", f"{value}{SECRET}{value}"):
        shown = redacted(f"http://{host}/x{before}{name}={text}&seed=3 it said")
        assert SECRET not in shown
        assert shown.startswith(f"http://{host}/x{before}{name}=***") and shown.endswith("&seed=3 it said")


@given(ANY, ANY)
def test_what_is_redacted_can_be_written_as_json_and_stays_hidden_when_redacted_again(user: str, password: str) -> None:
    text = f'?token={password}" in postgresql://{user}:{password}@host'
    shown = without_secrets({"a": [text, 1, None, True], "b": {"c": text}})
    assert json.loads(json.dumps(shown)) == shown
    assert shown["a"][1:] == [1, None, True]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://AKIA:a/b+c@bucket/x", "s3://***@bucket/x"),
        ("https://token@host/x and ftp://a:b@h", "https://***@host/x and ftp://***@h"),
        ("s3://b/x?region=r&secret_key=a/b&Token=c#f", "s3://b/x?region=r&secret_key=***&Token=***"),
        ("postgresql://h/db?user=me&password=a", "postgresql://h/db?user=me&password=***"),
        # A port and a path, or the digits and a slash of a password: in doubt it is one.
        ("http://host:5000/a@b", "http://***@b"),
        ("postgresql://me:12/ab@host/db", "postgresql://***@host/db"),
        ("tracking URI 'me:s3cr3t@host:5000' is not valid", "tracking URI '***@host:5000' is not valid"),
        ("  tracking  postgresql://me:s3 cr3t@host/db", "  tracking  postgresql://***@host/db"),
        ("--to 'postgresql://me:12 s3cr3t@host/db' --seeds 3", "--to 'postgresql://***@host/db' --seeds 3"),
        ("http://h/?to=http%3A%2F%2Fme%3As3cr3t%40host%2F&c=d", "http://h/?to=http%3A%2F%2F***%40host%2F&c=d"),
        ("http://h/?to=%2F%3Ftoken%3Ds3cr3t%26a%3Db&c=d", "http://h/?to=%2F%3Ftoken%3D***%26a%3Db&c=d"),
        ("<a href='?a=b&amp;token=s3;cr3t'>", "<a href='?a=b&amp;token=***'>"),
        ('?token=abc"', '?token=***"'),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Ds3cr3t%3B", "mssql+pyodbc:///?odbc_connect=***"),
        ("Driver={a b};UID=me;PWD={s3 ;cr3t};Encrypt=yes", "Driver={a b};UID=me;PWD=***;Encrypt=yes"),
        ("Server=h;User Id=me;Password=s3 cr3t;Encrypt=yes", "Server=h;User Id=me;Password=***;Encrypt=yes"),
        ("AccountName=x;AccountKey=s3cr3t==;EndpointSuffix=c", "AccountName=x;AccountKey=***;EndpointSuffix=c"),
        ("host=h user=me password='s3 cr3t' dbname=x", "host=h user=me password=*** dbname=x"),
        ("host=h user=me password=s3cr3t dbname=x", "host=h user=me password=*** dbname=x"),
        ("connect(host='h', password='s3 cr\"3t', port=3)", "connect(host='h', password=***, port=3)"),
        ('{"password": "s3cr3t", "user": "me"}', '{"password": ***, "user": "me"}'),
        ("export AWS_SECRET_ACCESS_KEY=s3cr3t; ls", "export AWS_SECRET_ACCESS_KEY=***; ls"),
        ("MLFLOW_TRACKING_PASSWORD=s3cr3t python x.py", "MLFLOW_TRACKING_PASSWORD=*** python x.py"),
        ("--api-key s3cr3t --seeds 3", "--api-key *** --seeds 3"),
        ("Authorization: Bearer s3cr3t", "Authorization: Bearer ***"),
        ("-H 'Authorization: Basic dXNlcjpwdw=='", "-H 'Authorization: Basic ***'"),
        ("{'Authorization': 'Basic dXNlcjpwdw=='}", "{'Authorization': ***}"),
        ("sent Bearer abc123def", "sent Bearer ***"),
        ("X-Api-Key: s3cr3t", "X-Api-Key: ***"),
        ("the key AKIAIOSFODNN7EXAMPLE is refused", "the key *** is refused"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\n", "***\n"),
    ],
)
def test_what_lets_others_in_is_left_out(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///mlflow.db",
        "http://127.0.0.1:5000/#/experiments/1/runs?searchFilter=tags.%60cvit.role%60&compareRunsMode=CHART",
        f"http://127.0.0.1:5000{page('1')}",
        "http://127.0.0.1:5000/a@b",
        "http://localhost:5000/a@b",
        "http://host/a@b",
        "s3://bucket/run@2?endpoint_override=127.0.0.1:9000&scheme=http",
        "me@example.org has 3 // 4 of a: b@c",
        "mailto:me@example.org, me@host:/path and /data/run@2/x: 1",
        "tracking server http://host:5000 refused me@example.org",
        "seed=3 study_key=ab12 author=me monkey=3 max_tokens=4 design=3 keyword=x key: y signal=z",
        "tags.`cvit.study_key` = 'a1b2'",
        "Basic authentication is required; Unused Tokens: ['1e-3'].",
        "killed by signal 9: node 10.0.0.1:1234 (worker 3@4)",
        "low_data: 1 of 2 trials done, 3 running, about 1 min left | random mean 12.1 % best 13.0 % (2)",
        "python sweeps/low_data.py --dataset /data/a=b --init-scheme random two_phase --learning-rate 0.001",
    ],
)
def test_text_without_a_secret_is_left_as_it_is(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize("task", TASK_NAMES)
def test_no_parameter_of_a_trial_is_taken_for_a_secret(task: str) -> None:
    for name in parameters_of_task(task):
        for text in (f"`{name}=3`, ", f"{name}: 3", f"--{name.replace('_', '-')} 3", f"params.{name} = 'a'"):
            assert redacted(text) == text

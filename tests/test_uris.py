"""URIs as text: passwords are hidden, everything else stays."""

from __future__ import annotations

import pickle

import pytest

from vader_ray.errors import RunFailed, UserError, first_line, last_line
from vader_ray.uris import Uri, full_uri, has_secret, is_redacted, redact, without_user

REDACTED = {
    "http://me:pw@host:5000": "http://***@host:5000",
    "HTTPS://token@host": "HTTPS://***@host",
    "http://me:p@ss@host/x": "http://***@host/x",
    "http://me:p#s?@host:1/": "http://***@host:1/",
    "http://me:p%40ss@host": "http://***@host",
    "http://me:@host": "http://***@host",
    "postgresql+psycopg2://me:p/w@host:5432/db?sslmode=x&password=pw": (
        "postgresql+psycopg2://***@host:5432/db?sslmode=x&password=***"
    ),
    "mssql+pyodbc://?odbc_connect=UID%3Dme%3BPWD%3Dpw": "mssql+pyodbc://?odbc_connect=***",
    "s3://key:pw@bucket/p?region=x&secret_key=pw": "s3://***@bucket/p?region=x&secret_key=***",
    "s3://bucket?AWS_SESSION_TOKEN=pw#x": "s3://bucket?AWS_SESSION_TOKEN=***#x",
    "two: 'http://me:pw@a/x', http://me:pw@b": "two: 'http://***@a/x', http://***@b",
    "API request to http://me:pw@h:1/api failed with Pool(host='h', port=1)": (
        "API request to http://***@h:1/api failed with Pool(host='h', port=1)"
    ),
}
PLAIN = (
    "http://host:5000",
    "http://host:5000/a@b",
    "http://[::1]:5000/a@b",
    "sqlite:////home/a@b/mlflow.db",
    "gs://anonymous@bucket/runs?scheme=http",
    "s3://bucket/runs?endpoint_override=http://127.0.0.1:9000",
    "http://host/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=vader_ray",
    "see https://a.b/c and write to x@y.z",
)


@pytest.mark.parametrize("text", REDACTED)
def test_passwords_and_secret_options_are_hidden(text: str) -> None:
    assert redact(text) == REDACTED[text]
    assert redact(redact(text)) == redact(text)
    assert has_secret(text)
    assert is_redacted(redact(text))


@pytest.mark.parametrize("text", PLAIN)
def test_other_texts_stay(text: str) -> None:
    assert redact(text) == text
    assert not has_secret(text)
    assert not is_redacted(text)


def test_a_uri_shows_no_password_and_keeps_it() -> None:
    whole = "http://me:pw@host"
    for uri in (Uri(whole), Uri(Uri(whole)), pickle.loads(pickle.dumps(Uri(whole)))):
        assert f"{uri} {uri!r} {uri!s:>15} " + "%s" % uri == (  # noqa: UP031
            "http://***@host 'http://***@host' http://***@host http://***@host"
        )
        assert (full_uri(uri), type(full_uri(uri)), without_user(uri)) == (whole, str, "http://host")


def test_errors_have_no_password() -> None:
    cause = ValueError("no answer of http://me:pw@host\nfrom http://me:pw@host")
    assert str(UserError("http://me:pw@host")) == str(RunFailed("http://me:pw@host")) == "http://***@host"
    assert first_line(cause) == "no answer of http://***@host"
    assert last_line(cause) == "from http://***@host"

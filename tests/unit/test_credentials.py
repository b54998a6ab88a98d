"""Credentials in URLs are used and never written; files that hold an environment are private."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfcluster.cli.main import main
from pfcluster.config import ConfigError, DataConfig
from pfcluster.config.urls import with_variables
from pfcluster.launch.site import Site
from pfcluster.launch.slurm.submit import make_private
from pfcluster.launch.training_options import command_text
from pfcluster.runs import provenance
from pfcluster.system.credentials import hide_credentials
from pfcluster.system.redaction import redact

SECRET = "s3cr3t"
LEAKING = (
    f"https://user:{SECRET}@host/shards",
    f"https://user:a@b{SECRET}@host:8080/shards",
    f"https://{SECRET}@host/shards",
    f"s3://key:{SECRET}@bucket/shards",
    f"https://host/shards?X-Amz-Signature={SECRET}",
    f"https://host/shards?version=1&token={SECRET}",
    f"https://account.blob.example/shards?sv=1&sig={SECRET}",
)
HARMLESS = (
    "https://host/shards",
    "https://${LOGIN}@host/shards",
    "https://user:${PASSWORD}@host/shards",
    "https://host/a@b/shards?version=3",
    "s3://bucket/key=1/shards",
    "/data/user:x@y/shards",
)


@pytest.mark.parametrize("url", LEAKING)
def test_a_url_with_credentials_is_refused_and_nothing_is_written(
    url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="put them into an environment variable") as raised:
        DataConfig(shards=url)
    assert SECRET not in str(raised.value)
    for command in ("finetune", "study"):
        options = ["--data.shards", url, "--output", str(tmp_path / "runs"), "--executor", "local"]
        assert main([command, *options]) == 2
    out, err = capfd.readouterr()
    assert "environment variable" in err
    assert SECRET not in out + err
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET not in path.read_text(errors="replace"), path


@pytest.mark.parametrize("url", LEAKING)
def test_recorded_commands_and_messages_hide_credentials(url: str, tmp_path: Path) -> None:
    assert SECRET not in redact(f"ClientError: 404, url='{url}'")
    assert SECRET not in command_text("evaluate", ["runs/x", "--shards", url])
    provenance.write(tmp_path, f"pfcluster evaluate --shards {url}")
    assert SECRET not in (tmp_path / "provenance.json").read_text()


@pytest.mark.parametrize("url", HARMLESS)
def test_other_urls_stay_as_they_are(url: str) -> None:
    assert hide_credentials(url) == url
    assert DataConfig(shards=url).shards == url


def test_variables_are_replaced_where_the_url_is_opened() -> None:
    assert with_variables("https://${A}:${B}@host", {"A": "user", "B": "pw"}) == "https://user:pw@host"
    with pytest.raises(ConfigError, match="needs the environment variable B, which is not set"):
        with_variables("https://${A}:${B}@host", {"A": "user"})


def test_a_site_file_may_not_hold_a_url_with_credentials() -> None:
    with pytest.raises(ConfigError, match=r"\[environment\] HTTPS_PROXY looks like a secret or holds one") as raised:
        Site(environment={"HTTPS_PROXY": f"http://user:{SECRET}@proxy:3128"})
    assert SECRET not in str(raised.value)
    Site(environment={"HTTPS_PROXY": "http://proxy:3128"})


def test_batch_scripts_are_private(tmp_path: Path) -> None:
    script, other = tmp_path / "12_submission.sh", tmp_path / "folders.txt"
    script.write_text("export HTTPS_PROXY=x\n")
    other.write_text("x")
    before = other.stat().st_mode
    make_private(tmp_path)
    assert script.stat().st_mode & 0o777 == 0o600
    assert other.stat().st_mode == before

"""cluster.yaml passes Ray's own schema and EC2's, and keeps what the project promises about the cluster."""

import copy
import re
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from jsonschema import ValidationError
from packaging.requirements import Requirement
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run_instances_shape() -> Any:
    """The botocore shape of EC2's RunInstances request."""
    model = botocore.session.get_session().get_service_model("ec2")
    return model.operation_model("RunInstances").input_shape


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def commands(config: dict[str, Any]) -> list[str]:
    """Every shell command of the file, head's and workers'."""
    return [command for key, value in config.items() if key.endswith("commands") for command in value]


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert prepared["available_node_types"]["gpu_worker"]["max_workers"] == config["max_workers"]


def test_ray_refuses_an_unknown_key(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="min_wrokers"):
        validate_config(prepare_config(config | {"min_wrokers": 1}))


@pytest.mark.parametrize("node_type", ["head", "gpu_worker"])
def test_ec2_accepts_its_nodes(config: dict[str, Any], run_instances_shape: Any, node_type: str) -> None:
    node_config = config["available_node_types"][node_type]["node_config"]
    report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node_config}, run_instances_shape)
    assert not report.has_errors(), report.generate_report()
    assert node_config["InstanceType"] in run_instances_shape.members["InstanceType"].enum
    market = run_instances_shape.members["InstanceMarketOptions"].members["MarketType"].enum
    assert node_config.get("InstanceMarketOptions", {}).get("MarketType", market[0]) in market


def test_workers_are_spot_and_go_when_idle(config: dict[str, Any]) -> None:
    workers = {name: t for name, t in config["available_node_types"].items() if name != config["head_node_type"]}
    assert workers
    for worker in workers.values():
        assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert worker["min_workers"] == 0
    assert config["idle_timeout_minutes"] <= 15


def test_the_head_is_not_spot_and_trains_nothing(config: dict[str, Any]) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"]["CPU"] == 0


def test_one_ray_version_for_all_nodes(config: dict[str, Any]) -> None:
    pins = [pin for c in commands(config) for pin in re.findall(r"ray\[[a-z,]+\]==(\S+?)'", c)]
    assert len(pins) == 1
    assert any(pins[0] in command for command in config["setup_commands"]), "head and workers alike"
    pyproject = (ROOT / "pyproject.toml").read_text()
    specifiers = [Requirement(text).specifier for text in re.findall(r'"(ray\[[^"]+)"', pyproject)]
    assert len(specifiers) == 2
    assert all(Version(pins[0]) in specifier for specifier in specifiers)


def test_services_listen_on_loopback_only(config: dict[str, Any]) -> None:
    text = "\n".join(commands(config))
    assert re.search(r"mlflow server --host 127\.0\.0\.1 .*--workers 1\b", text)
    assert "--dashboard-host=127.0.0.1" in text
    assert "0.0.0.0" not in text
    assert "security_group" not in config["provider"], "the default group opens SSH alone"


def test_mounted_files_are_the_installed_ones(config: dict[str, Any]) -> None:
    for remote, local in config["file_mounts"].items():
        assert (ROOT / local).exists(), local
        assert remote == f"/home/ubuntu/cvit/{local}"


def test_no_secrets() -> None:
    text = (ROOT / "cluster.yaml").read_text()
    assert not re.search(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|aws_secret|BEGIN [A-Z ]*PRIVATE KEY", text, re.IGNORECASE)

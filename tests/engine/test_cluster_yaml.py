"""cluster.yaml and cluster-onprem.yaml pass Ray's own schema, the first one EC2's and a mocked AWS too, and both keep
what the project promises about clusters."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from jsonschema import ValidationError
from moto import mock_aws
from packaging.requirements import Requirement
from packaging.version import Version
from ray.autoscaler._private import commands as ray_commands
from ray.autoscaler._private.local.config import LOCAL_CLUSTER_NODE_TYPE
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import NODE_KIND_WORKER, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

ROOT = Path(__file__).parents[2]
FILES = ("cluster.yaml", "cluster-onprem.yaml")
POLICIES = ROOT / "docs" / "aws"


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture(params=FILES)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Returns either file."""
    return load(request.param)


@pytest.fixture
def aws() -> dict[str, Any]:
    return load("cluster.yaml")


@pytest.fixture
def onprem() -> dict[str, Any]:
    return load("cluster-onprem.yaml")


def commands(config: dict[str, Any], *kinds: str) -> list[str]:
    """Returns the shell commands of the file whose key contains one of the words; all where none is given."""
    keys = [key for key in config if key.endswith("commands") and (not kinds or any(kind in key for kind in kinds))]
    return [command for key in keys for command in config[key]]


# Ray's schema


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_refuses_an_unknown_key(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="min_wrokers"):
        validate_config(prepare_config(config | {"min_wrokers": 1}))


def test_the_number_of_workers_stands_in_one_place(aws: dict[str, Any], onprem: dict[str, Any]) -> None:
    assert prepare_config(aws | {"max_workers": 3})["available_node_types"]["gpu_worker"]["max_workers"] == 3
    for name in FILES:
        assert len(re.findall(r"^[^#\n]*max_workers: (?:&\w+ )?[1-9]", (ROOT / name).read_text(), re.MULTILINE)) == 1
    assert onprem["max_workers"] == len(onprem["provider"]["worker_ips"])


def test_on_premises_ray_starts_every_worker(onprem: dict[str, Any]) -> None:
    """Ray takes the file as it is. With its own single node type the head counts as a worker (tests/cluster)."""
    prepared = prepare_config(copy.deepcopy(onprem))
    assert prepared == onprem
    assert set(prepared["available_node_types"]) == {LOCAL_CLUSTER_NODE_TYPE, "worker"}
    assert prepared["head_node_type"] == LOCAL_CLUSTER_NODE_TYPE
    worker = prepared["available_node_types"]["worker"]
    assert worker["min_workers"] == worker["max_workers"] == len(onprem["provider"]["worker_ips"])
    filled_in = prepare_config({key: v for key, v in onprem.items() if "node_type" not in key})
    assert filled_in.keys() <= onprem.keys(), "a key that Ray would have filled in is missing"


# AWS


@pytest.mark.parametrize("node_type", ["head", "gpu_worker"])
def test_ec2_accepts_its_nodes(aws: dict[str, Any], node_type: str) -> None:
    shape: Any = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    node_config = aws["available_node_types"][node_type]["node_config"]
    report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node_config}, shape)
    assert not report.has_errors(), report.generate_report()
    assert enums_violated(node_config, shape) == []


def enums_violated(value: Any, shape: Any) -> list[str]:
    """Values that are none of their enumeration's, anywhere below."""
    if shape.type_name == "structure":
        return [bad for name, part in value.items() for bad in enums_violated(part, shape.members[name])]
    if shape.type_name == "list":
        return [bad for part in value for bad in enums_violated(part, shape.member)]
    return [value] if getattr(shape, "enum", None) and value not in shape.enum else []


def test_enumerations_are_looked_at_wherever_they_stand() -> None:
    shape: Any = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    wrong = {
        "InstanceType": "g5.xlarge",
        "InstanceMarketOptions": {"MarketType": "spto"},
        "BlockDeviceMappings": [{"Ebs": {"VolumeType": "gp33"}}],
    }
    assert enums_violated(wrong, shape) == ["spto", "gp33"]


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An AWS account, mocked, after the commands of docs/CLUSTER.md; Ray's key pair goes to a home of its own."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with mock_aws():
        iam = boto3.client("iam")
        for name, policies in (("cvit-head", ("head", "worker")), ("cvit-worker", ("worker",))):
            iam.create_role(
                RoleName=name, AssumeRolePolicyDocument=(POLICIES / "trust-policy.json").read_text().strip()
            )
            for policy in policies:
                document = (POLICIES / f"{policy}-policy.json").read_text()
                iam.put_role_policy(RoleName=name, PolicyName=policy, PolicyDocument=document)
            iam.create_instance_profile(InstanceProfileName=name)
            iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
        yield


@pytest.mark.usefixtures("account")
def test_a_mocked_aws_starts_a_spot_worker_and_opens_ssh_alone(aws: dict[str, Any]) -> None:
    region = aws["provider"]["region"]
    resolved = ray_commands._bootstrap_config(copy.deepcopy(aws), no_config_cache=True)
    types = resolved["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert types["gpu_worker"]["resources"] | {"CPU": 4, "GPU": 1} == types["gpu_worker"]["resources"]
    provider = _get_node_provider(resolved["provider"], resolved["cluster_name"])
    tags = {TAG_RAY_NODE_KIND: NODE_KIND_WORKER, TAG_RAY_USER_NODE_TYPE: "gpu_worker"}
    provider.create_node(types["gpu_worker"]["node_config"], tags, 1)
    ec2 = boto3.client("ec2", region_name=region)
    (reservation,) = ec2.describe_instances()["Reservations"]
    (instance,) = reservation["Instances"]
    assert instance["InstanceLifecycle"] == "spot"
    assert instance["IamInstanceProfile"]["Arn"].endswith("/cvit-worker")
    groups = ec2.describe_security_groups(GroupIds=[g["GroupId"] for g in instance["SecurityGroups"]])["SecurityGroups"]
    open_to_others = [rule for group in groups for rule in group["IpPermissions"] if rule["IpRanges"]]
    assert [(rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) for rule in open_to_others] == [("tcp", 22, 22)]
    others = [
        pair["GroupId"] for group in groups for rule in group["IpPermissions"] for pair in rule["UserIdGroupPairs"]
    ]
    assert set(others) == {group["GroupId"] for group in groups}, "otherwise the cluster's machines alone"


def test_workers_are_spot_and_go_when_idle(aws: dict[str, Any]) -> None:
    workers = {name: t for name, t in aws["available_node_types"].items() if name != aws["head_node_type"]}
    assert workers
    for worker in workers.values():
        assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert worker["min_workers"] == 0
    assert aws["idle_timeout_minutes"] <= 15


def test_the_head_is_not_spot_and_trains_nothing(aws: dict[str, Any]) -> None:
    head = aws["available_node_types"][aws["head_node_type"]]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"]["CPU"] == 0


@pytest.mark.parametrize("name", ["head", "worker"])
def test_policies_allow_what_is_needed_and_no_more(name: str) -> None:
    statements = json.loads((POLICIES / f"{name}-policy.json").read_text())["Statement"]
    for statement in statements:
        actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        assert not any("*" in action for action in actions)
        services = {action.partition(":")[0] for action in actions}
        assert services == {"ec2"} or statement["Resource"] != "*"
        assert services != {"s3"} or statement["Resource"].startswith("arn:aws:s3:::YOUR-BUCKET")
    if name == "worker":
        assert all(action.startswith("s3:") for statement in statements for action in statement["Action"])


# Our own rules


def test_one_ray_version_for_all_nodes(config: dict[str, Any]) -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    specifiers = [Requirement(text).specifier for text in re.findall(r'"(ray\[[^"]+)"', pyproject)]
    assert len(specifiers) == 2
    pins = {name: re.findall(r"ray\[[a-z,]+\]==([0-9.]+)", (ROOT / name).read_text()) for name in FILES}
    assert len({pin for found in pins.values() for pin in found}) == 1, pins
    assert all(Version(pins[FILES[0]][0]) in specifier for specifier in specifiers)
    installs = [c for c in commands(prepare_config(config), "worker_setup") if "pip install" in c]
    assert installs == [c for c in commands(prepare_config(config), "head_setup") if "pip install" in c]
    assert len(installs) == 1 and "ray[" in installs[0] and "--exclude-newer" in installs[0]


def test_head_and_workers_authenticate_with_a_token_that_is_mounted(config: dict[str, Any]) -> None:
    for kind in ("head", "worker"):
        (start,) = [command for command in commands(config, f"{kind}_start") if "ray start" in command]
        assert "RAY_AUTH_MODE=token " in start
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_services_listen_on_loopback_only(config: dict[str, Any]) -> None:
    text = "\n".join(commands(config))
    assert re.search(r"mlflow server --host 127\.0\.0\.1 .*--workers 1\b", text)
    assert len(re.findall("mlflow server", text)) - len(re.findall(r"mlflow server --host 127\.0\.0\.1", text)) == 0
    assert "--dashboard-host=127.0.0.1" in text
    assert "0.0.0.0" not in text
    assert "security_group" not in config["provider"], "the default group opens SSH alone"


def test_mounted_files_are_the_installed_ones(config: dict[str, Any]) -> None:
    for remote, local in config["file_mounts"].items():
        if local != "~/.ray/auth_token":
            assert (ROOT / local).exists(), local
            assert remote == f"~/cvit/{local}"


@pytest.mark.parametrize("path", [*(ROOT / name for name in FILES), *POLICIES.iterdir()], ids=lambda path: path.name)
def test_no_secrets(path: Path) -> None:
    secret = r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|aws_secret|BEGIN [A-Z ]*PRIVATE KEY|://[^/\s]*:[^/\s]*@|\b[0-9a-f]{64}\b"
    assert not re.search(secret, path.read_text(), re.IGNORECASE)

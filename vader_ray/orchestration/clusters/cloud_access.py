"""Checks of the access to a cluster on AWS or Google Cloud: security groups, networks, IAM policies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

from vader_ray.orchestration.clusters.placeholders import PLACEHOLDER

_NETWORK_FIELDS = {
    "aws": (("SecurityGroupIds", "NetworkInterfaces", "LaunchTemplate"), "clusters/aws/security-group.json"),
    "gcp": (("networkInterfaces",), "clusters/gcp/network.sh"),
}
_ENDING = ("ec2:TerminateInstances", "ec2:StopInstances")


def is_policy(document: Any) -> bool:
    """Return whether a document is an IAM policy."""
    return isinstance(document, dict) and "Statement" in document


def is_security_group(document: Any) -> bool:
    """Return whether a document has the rules of a security group."""
    return isinstance(document, dict) and "IpPermissions" in document


def network_errors(document: dict[str, Any]) -> Iterator[str]:
    """Yield the node types of a launcher's file that would get a network with SSH open to everyone."""
    fields, example = _NETWORK_FIELDS.get(document.get("provider", {}).get("type"), ((), ""))
    for name, node_type in document.get("available_node_types", {}).items():
        if fields and not any(field in node_type.get("node_config", {}) for field in fields):
            yield (
                f"available_node_types.{name}.node_config: {fields[0]} is missing, and the default network "
                f"admits SSH from everywhere; name yours, made as in {example}"
            )


def security_group_errors(document: dict[str, Any]) -> Iterator[str]:
    """Yield the errors of a security group's rules."""
    rules = document["IpPermissions"]
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        yield "IpPermissions: not a list of rules"
        return
    for number, rule in enumerate(rules):
        for addresses in rule.get("IpRanges", []):
            path = f"IpPermissions.{number}.IpRanges"
            yield from (f"{path}: {error}" for error in cidr_errors(str(addresses.get("CidrIp"))))


def cidr_errors(value: str) -> Iterator[str]:
    """Yield the error of a range of addresses; a placeholder is left to the check of placeholders."""
    if PLACEHOLDER.fullmatch(value):
        return
    try:
        everyone = ip_network(value, strict=False).prefixlen == 0
    except ValueError:
        yield f"{value!r} is not a range of addresses; give one such as 203.0.113.0/24"
        return
    if everyone:
        yield f"{value} is everyone; give your network's range, such as 203.0.113.0/24"


def policy_errors(document: dict[str, Any]) -> Iterator[str]:
    """Yield the errors of an IAM policy's statements."""
    if document.get("Version") != "2012-10-17":
        yield f"Version: {document.get('Version')!r} is not '2012-10-17', the policy language's current one"
    statements = document["Statement"]
    if not isinstance(statements, list) or not statements:
        yield "Statement: not a list with at least one statement"
        return
    for number, statement in enumerate(statements):
        yield from (f"Statement.{number}: {error}" for error in _statement_errors(statement))


def _statement_errors(statement: Any) -> Iterator[str]:
    if not isinstance(statement, dict):
        yield "not a statement with Effect, Action and Resource"
        return
    target = "Principal" if "Principal" in statement else "Resource"
    for name in ("Effect", "Action", target):
        if name not in statement:
            yield f"{name} is missing"
    if statement.get("Effect") not in ("Allow", "Deny"):
        yield f"Effect: {statement.get('Effect')!r} is not 'Allow' or 'Deny'"
    actions = statement.get("Action", [])
    actions = [actions] if isinstance(actions, str) else actions
    if statement.get("Effect") == "Allow" and "Condition" not in statement and any(map(_ends, actions)):
        yield (
            "it allows to end every machine of the account; add a Condition on ec2:ResourceTag/"
            "ray-cluster-name"
        )


def _ends(action: str) -> bool:
    """Return whether an action, with its wildcards, can end machines."""
    pattern = re.escape(action).replace(r"\*", ".*").replace(r"\?", ".")
    return any(re.fullmatch(pattern, ending, re.IGNORECASE) for ending in _ENDING)

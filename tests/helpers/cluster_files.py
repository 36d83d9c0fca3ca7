"""The files of ``clusters/`` with their placeholders filled in."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.paths import REPOSITORY

CLUSTERS = REPOSITORY / "clusters"
VALUES = {
    "<BUCKET>": "lab",
    "<IMAGE_ID>": "ami-0123456789abcdef0",
    "<IMAGE>": "registry.example.org/vader-ray:0.1.0",
    "<SECURITY_GROUP_ID>": "sg-0123456789abcdef0",
    "<SSH_CIDR>": "203.0.113.0/24",
    "<OPERATOR_NAMESPACE>": "kuberay-system",
    "<PROJECT_ID>": "lab-1",
    "<HEAD_IP>": "10.0.0.1",
    "<WORKER_IP>": "10.0.0.2",
    "<SSH_USER>": "ubuntu",
    "<SHARED_FOLDER>": "/shared",
    "<PARTITION>": "gpu",
}


def filled(name: str, folder: Path, **changes: str) -> Path:
    """Write a copy of the file into `folder`, with `VALUES` and `changes` for its placeholders."""
    text = (CLUSTERS / name).read_text()
    for before, after in {**VALUES, **changes}.items():
        text = text.replace(before, after)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path

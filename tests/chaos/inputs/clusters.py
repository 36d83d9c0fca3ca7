"""Cluster files that are refused (name, change before → after, expected piece of the sentence)."""

from __future__ import annotations

REFUSED = [
    ("aws.yaml", "max_workers: 10", "max_wokers: 10", "max_wokers"),
    ("aws.yaml", "max_workers: 10", "max_workers: -1", "max_workers: -1 is less than the minimum of 0"),
    ("aws.yaml", "max_workers: 10", "max_workers: ten", "max_workers: 'ten' is not of type 'integer'"),
    ("aws.yaml", "max_workers: 10", "max_workers: [", "cannot be read as YAML"),
    ("aws.yaml", "max_workers: 10", "max_workers: 10\nnonsense: 1", "nonsense"),
    ("aws.yaml", "head_node_type: head", "head_node_type: heads", "head_node_type"),
    (
        "aws.yaml",
        "==2.60.0",
        "==2.59.0",
        "Ray 2.59.0 is named, 2.60.0 is installed here; all machines need the same",
    ),
    ("local.yaml", "head_ip:", "had_ip:", "head_ip"),
    ("slurm.sbatch", "sleep 1\ndone", "sleep 1", "syntax error"),
    ("kuberay-cluster.yaml", "minReplicas: 0", "minReplicas: 2", "not between minReplicas and maxReplicas"),
    ("kuberay-job.yaml", "entrypoint:", "entry:", "spec: 'entrypoint' is a required property"),
]

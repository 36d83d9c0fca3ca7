#!/usr/bin/env bash
# Installs the packages on the machine that becomes the image of packages.pkr.hcl. WHEEL: path of this package's wheel.
# The folder ~/venv is that of clusters/aws.yaml and clusters/gcp.yaml, which then install nothing.
set -euo pipefail

sudo apt-get -qq update
sudo apt-get -qq --option DPkg::Lock::Timeout=600 install --no-install-recommends python3-venv
python3 -m venv ~/venv
~/venv/bin/pip install --quiet --no-cache-dir "${WHEEL}[aws,gcp,server]" "ray[default,train,tune]==2.60.0"
~/venv/bin/vader-ray --version
rm "$WHEEL"
sudo rm -rf /var/lib/apt/lists/*

#!/usr/bin/env bash
# Network, firewall and the workers' account for clusters/gcp.yaml, made once per project.
#
#   1. Fill <PROJECT_ID>, <BUCKET> and <SSH_CIDR>: your network's public addresses, for example 203.0.113.0/24.
#   2. vader-ray check clusters/gcp/network.sh
#   3. bash clusters/gcp/network.sh
set -euo pipefail
project="<PROJECT_ID>"
bucket="<BUCKET>"
ssh_cidr="<SSH_CIDR>"

gcloud compute networks create vader-ray --project "$project" --subnet-mode custom
gcloud compute networks subnets create vader-ray --project "$project" --network vader-ray --region us-central1 --range 10.80.0.0/20
gcloud compute firewall-rules create vader-ray-ssh --project "$project" --network vader-ray --allow tcp:22 --source-ranges "$ssh_cidr"
gcloud compute firewall-rules create vader-ray-members --project "$project" --network vader-ray --allow all --source-ranges 10.80.0.0/20

gcloud iam service-accounts create vader-ray-worker --project "$project"
gcloud storage buckets add-iam-policy-binding "gs://$bucket" --role roles/storage.objectUser \
    --member "serviceAccount:vader-ray-worker@$project.iam.gserviceaccount.com"

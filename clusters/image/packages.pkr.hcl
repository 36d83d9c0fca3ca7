# An image of a machine with all packages, for clusters/aws.yaml and clusters/gcp.yaml: nodes start without installing 7 GB each.
# It holds no token, no weights and no code of jobs.
#
#   1. pip wheel --no-deps --wheel-dir dist .     in the repository; elsewhere, copy the wheel that you have installed into dist/
#   2. packer init clusters/image/packages.pkr.hcl
#   3. packer build -only=amazon-ebs.machine -var region=us-west-2 clusters/image/packages.pkr.hcl
#      packer build -only=googlecompute.machine -var project=PROJECT_ID -var source_image_family=FAMILY clusters/image/packages.pkr.hcl
#      FAMILY: Ubuntu 24.04 with NVIDIA's driver, of `gcloud compute images list --project deeplearning-platform-release
#      --no-standard-images --filter="family~ubuntu-2404"`
#   4. In clusters/aws.yaml, the id that packer prints (ami-…) is <IMAGE_ID>; in clusters/gcp.yaml, <IMAGE> is
#      projects/PROJECT_ID/global/images/family/vader-ray.
packer {
  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = "~> 1"
    }
    googlecompute = {
      source  = "github.com/hashicorp/googlecompute"
      version = "~> 1"
    }
  }
}

variable "region" {
  type    = string
  default = "us-west-2"
}

variable "project" {
  type    = string
  default = ""
}

variable "source_image_family" {
  type    = string
  default = ""
}

variable "zone" {
  type    = string
  default = "us-central1-a"
}

variable "wheel" {
  type    = string
  default = "vader_ray-0.1.0-py3-none-any.whl"
}

locals {
  name = "vader-ray-${formatdate("YYYYMMDD-hhmm", timestamp())}"
}

# Deep Learning Base AMI with NVIDIA's open driver (Ubuntu 24.04, Python 3.12). The build itself needs no GPU.
data "amazon-parameterstore" "base" {
  name   = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
  region = var.region
}

source "amazon-ebs" "machine" {
  region        = var.region
  instance_type = "m7i.2xlarge"
  source_ami    = data.amazon-parameterstore.base.value
  ssh_username  = "ubuntu" # of clusters/aws.yaml
  ami_name      = local.name
  tags          = { project = "vader-ray" }

  launch_block_device_mappings {
    device_name           = "/dev/sda1"
    volume_size           = 200 # of clusters/aws.yaml
    volume_type           = "gp3"
    delete_on_termination = true
  }

  metadata_options {
    http_tokens = "required"
  }
}

source "googlecompute" "machine" {
  project_id              = var.project
  zone                    = var.zone
  machine_type            = "n2-standard-8"
  source_image_family     = var.source_image_family
  source_image_project_id = ["deeplearning-platform-release"]
  ssh_username            = "ubuntu" # of clusters/gcp.yaml
  image_name              = local.name
  image_family            = "vader-ray"
  disk_size               = 200
  disk_type               = "pd-balanced"
}

build {
  sources = ["source.amazon-ebs.machine", "source.googlecompute.machine"]

  provisioner "file" {
    source      = "dist/${var.wheel}"
    destination = "/tmp/${var.wheel}"
  }

  provisioner "shell" {
    script           = "${path.root}/provision.sh"
    environment_vars = ["WHEEL=/tmp/${var.wheel}"]
  }
}

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Make an environment with all peers and intonly in it: bench/peers/setup.sh [FOLDER], then FOLDER/bin/python bench/latency.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
env="${1:-.venv-peers}"
pip=("$env/bin/python" -m pip --no-input --disable-pip-version-check --quiet)

test -x "$env/bin/python" || "${PYTHON:-python3}" -m venv "$env"
"${pip[@]}" install "${TORCH:-torch==2.13.0}"
"${pip[@]}" install -r bench/peers/requirements.txt
"${pip[@]}" install scikit-build-core nanobind cmake ninja
"${pip[@]}" install --no-build-isolation -e '.[torch,onnx]'
echo "ready: $env/bin/python bench/latency.py"

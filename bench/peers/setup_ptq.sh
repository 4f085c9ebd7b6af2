#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Make an environment for each peer of bench/ptq_peers.py: bench/peers/setup_ptq.sh FOLDER, then
# python bench/ptq_peers.py --python brevitas=FOLDER/brevitas/bin/python --python aimet=FOLDER/aimet/bin/python
# NNCF has no 4-bit activations for convolutions: --python nncf=FOLDER/nncf/bin/python --peers nncf,intonly --widths 4/8
#
# torch comes first, so that nothing chooses another build. AIMET is installed without its dependencies, which would bring a
# CUDA build of torch through torchvision; those that it imports are named. NNCF compiles its quantizers at the first run, which
# it gives up after a minute unless NNCF_EXTENSION_LOAD_TIMEOUT=0.
set -euo pipefail
home="${1:?folder for the environments}"
torch="${TORCH:-torch==2.13.0}"

for peer in brevitas aimet nncf; do
    test -x "$home/$peer/bin/python" || "${PYTHON:-python3}" -m venv "$home/$peer"
    "$home/$peer/bin/pip" install --quiet "$torch"
done
"$home/brevitas/bin/pip" install --quiet brevitas==0.13.4 numpy safetensors accelerate tqdm
"$home/nncf/bin/pip" install --quiet nncf==3.4.0 safetensors
"$home/aimet/bin/pip" install --quiet --no-deps aimet-torch==2.42.0 torchvision==0.28.0
"$home/aimet/bin/pip" install --quiet Jinja2 PyYAML 'bokeh>=3.3,<=3.6.3' cvxpy holoviews 'hvplot>=0.10' jsonschema matplotlib \
    networkx numpy onnx 'onnx_ir>=0.1.16' 'onnxscript>=0.2' osqp pandas pillow psutil pybind11 safetensors scikit-learn scipy \
    tensorboard tqdm

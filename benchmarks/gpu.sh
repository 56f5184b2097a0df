#!/bin/sh
# All that nervure has to show on a GPU, in one command and at most eight minutes; results land in one folder below runs/.
#
#   sh benchmarks/gpu.sh                          on the GPU
#   sh benchmarks/gpu.sh --device cpu --quick     the same with little of everything, to see that it runs
#
# It takes a checkout, and a Python with torch, numpy, msgspec, safetensors and filelock (the tests: pytest, too). Where
# the machine cannot reach a registry, make a folder of what it lacks on one that can, with the same Python and system:
#
#   python -m pip install --target runs/gpu-packages --no-deps msgspec safetensors filelock pytest pluggy iniconfig pygments packaging
#
# and bring it along: what is in runs/gpu-packages is found. --help says what else can be said.
cd "$(dirname "$0")/.." || exit 1
exec "${PYTHON:-python3}" -m benchmarks.gpu.run "$@"

#!/usr/bin/env bash
# transformers 5.24.0: ResNet's "hidden_act" of config.json is that of the stem and of the ends of its
# blocks; the convolutions within them have ReLU whatever it says.
#
# The config documents it as the activation of each block, and MobileNetV2, beside it, has its own
# everywhere. A port that follows the config is right for all published checkpoints, which have
# ReLU, and wrong for any other, by far more than rounding. Expected: the activation everywhere.
#
# Output seen:
#   transformers 5.24.0
#   stem              SiLU
#   layer.0 of block  ReLU
#   layer.1 of block  ReLU
#   layer.2 of block  Identity
#   end of block      SiLU
#   ReLU within blocks, as described
#
# What to do: port ResNet with ReLU within blocks, and compare on a checkpoint of another activation.
#
# Exits with 0 while that holds, with 1 once it does not. Needs python3 and its package index.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 torch==2.13.0

"$folder/venv/bin/python" - <<'PYTHON'
"""Says which activations a ResNet has whose config asks for SiLU."""
import sys

import transformers

print("transformers", transformers.__version__)
config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16], depths=[1], hidden_act="silu")
model = transformers.ResNetModel(config)
block = model.encoder.stages[0].layers[0]
found = {"stem": model.embedder.embedder.activation, "end of block": block.activation}
found |= {f"layer.{k} of block": layer.activation for k, layer in enumerate(block.layer)}
for name in ("stem", "layer.0 of block", "layer.1 of block", "layer.2 of block", "end of block"):
    print(f"{name:<17} {type(found[name]).__name__.removesuffix('Activation')}")
inner = {type(found[f"layer.{k} of block"]).__name__ for k in (0, 1)}
if inner != {"ReLU"} or "ReLU" in type(found["end of block"]).__name__:
    sys.exit("another behaviour than described")
print("ReLU within blocks, as described")
PYTHON

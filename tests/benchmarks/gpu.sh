#!/bin/sh
# Speed, memory and equality of training, embed and caption on one GPU, in at most nine minutes, without a network:
#   sh tests/benchmarks/gpu.sh            # one H100 or H200: ViT-L/14-336 with a language model of 0.5B, ViT-B/32
#   sh tests/benchmarks/gpu.sh --cpu      # tiny sizes, on any machine
exec python "$(dirname "$0")/gpu.py" "$@"

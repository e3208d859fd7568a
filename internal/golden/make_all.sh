#!/bin/sh
# Writes every committed fixture anew:   make_all.sh OUT_DIR
# PYTHON names an interpreter that has requirements.txt (default: python3).
set -eu
[ $# -eq 1 ] || { echo "usage: make_all.sh OUT_DIR" >&2; exit 2; }
mkdir -p "$1"
OUT=$(cd "$1" && pwd)
case ${PYTHON:=python3} in /*) ;; */*) PYTHON=$PWD/$PYTHON ;; esac
cd "$(dirname "$0")"
# One process: importing torch, transformers and peft costs more than most of the work.
exec "$PYTHON" -c '
import pathlib, sys
import families, encoders, lora_golden, methods_lora, methods_conv, initial_golden, methods_relatives, methods_orthogonal, embeddings_golden, curves_golden, targets_golden, generate_golden, sampling, combine_golden, quant_golden, ia3
for part in (families, encoders, lora_golden, methods_lora, methods_conv, initial_golden, methods_relatives, methods_orthogonal, embeddings_golden, curves_golden, targets_golden, generate_golden, sampling, combine_golden, quant_golden, ia3):
    part.main(pathlib.Path(sys.argv[1]))
' "$OUT"

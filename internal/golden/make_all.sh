#!/bin/sh
# Writes every committed fixture anew:   make_all.sh OUT_DIR
# PYTHON names an interpreter that has requirements.txt (default: python3), ADAPTERHUB the folder of
# requirements-adapters.txt, which is filled if need be (default: .cache/adapterhub of the repository).
set -eu
[ $# -eq 1 ] || { echo "usage: make_all.sh OUT_DIR" >&2; exit 2; }
mkdir -p "$1"
OUT=$(cd "$1" && pwd)
case ${PYTHON:=python3} in /*) ;; */*) PYTHON=$PWD/$PYTHON ;; esac
case ${ADAPTERHUB:=$(cd "$(dirname "$0")/../.." && pwd)/.cache/adapterhub} in /*) ;; *) ADAPTERHUB=$PWD/$ADAPTERHUB ;; esac
cd "$(dirname "$0")"
# One process: importing torch, transformers and peft costs more than most of the work.
"$PYTHON" -c '
import pathlib, sys
import families, encoders, lora_golden, methods_lora, methods_conv, initial_golden, methods_relatives, methods_orthogonal, embeddings_golden, curves_golden, targets_golden, generate_golden, sampling, combine_golden, quant_golden, ia3, prefixtuning
for part in (families, encoders, lora_golden, methods_lora, methods_conv, initial_golden, methods_relatives, methods_orthogonal, embeddings_golden, curves_golden, targets_golden, generate_golden, sampling, combine_golden, quant_golden, ia3, prefixtuning):
    part.main(pathlib.Path(sys.argv[1]))
' "$OUT"

# AdapterHub's package wants an older transformers: it has a folder and a process of its own.
if ! cmp -s requirements-adapters.txt "$ADAPTERHUB/requirements-adapters.txt"; then
  mkdir -p "$ADAPTERHUB"
  rm -f "$ADAPTERHUB/requirements-adapters.txt"
  if "$PYTHON" -m pip install -q --no-deps --upgrade --target "$ADAPTERHUB" -r requirements-adapters.txt; then
    cp requirements-adapters.txt "$ADAPTERHUB/"
  fi
fi
if [ -f "$ADAPTERHUB/requirements-adapters.txt" ]; then
  PYTHONPATH=$ADAPTERHUB "$PYTHON" bottleneck.py "$OUT"
else
  echo "!!! AdapterHub's package could not be installed: bottleneck/ is NOT made anew, the committed fixtures are taken !!!"
  [ "$OUT" = "$PWD/testdata" ] || cp -r testdata/bottleneck "$OUT/"
fi

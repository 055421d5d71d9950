#!/usr/bin/env bash
# Everything that a GPU has to confirm, in steps of under ten minutes, each of which writes its results as it goes.
#
#   benchmarks/gpu.sh              all steps, one after another
#   benchmarks/gpu.sh list         their names
#   benchmarks/gpu.sh battery norms  some of them
#
# Logs, exit codes and measured JSON go to $OUT (default: out/gpu). Needs a torch with CUDA,
# to build an nvcc, and to measure pytest-benchmark; installs nothing but genmod itself.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-out/gpu}
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-580}  # seconds per step
mkdir -p "$OUT"

build() { GENMOD_CUDA=1 "$PYTHON" -m pip install --no-build-isolation --no-deps --no-index -e .; }
doctor() { "$PYTHON" -m genmod doctor --json; }
battery() { "$PYTHON" -m pytest -q -m gpu --numprocesses "${WORKERS:-8}" tests/ops tests/nn tests/penalties tests/swap; }
recipes() { "$PYTHON" -m pytest -q -m gpu --numprocesses "${WORKERS:-8}" tests/recipes; }
kernels() { "$PYTHON" -m pytest -q tests/kernels; }
memcheck() { compute-sanitizer --tool memcheck --kernel-name kernel_substring=genmod --error-exitcode 1 "$PYTHON" -m pytest -q -m gpu tests/ops/test_battery.py -k "cuda-cuda and accuracy and float32"; }
racecheck() { compute-sanitizer --tool racecheck --kernel-name kernel_substring=genmod --error-exitcode 1 "$PYTHON" -m pytest -q -m gpu tests/ops/test_battery.py -k "cuda-cuda and accuracy and float32"; }
measured() { "$PYTHON" -m genmod bench --device cuda --dtype "$2" --rounds 9 --mode forward --mode forward+backward --json "$OUT/$1_$2.json" "${@:3}"; }
gaussian() { measured gaussian bfloat16 --op reparameterize --op gaussian_kl --op sample_kl; }
losses() { measured losses float32 --op bernoulli_nll --op gaussian_nll --op laplace_nll --op discretized_logistic_nll --op logistic_mixture_nll; }
aggregate() { measured aggregate float32 --op total_correlation --op mmd; }
norms() { measured norms bfloat16 --op group_norm_act --op batch_norm_act --op bias_act; }
convolutions() { measured convolutions bfloat16 --op upsample_conv2d --op conv_transpose2d_norm_act; }
steps() { "$PYTHON" -m genmod bench --device cuda --suite models --rounds 9 --json "$OUT/steps_float32.json"; }
decoders() { "$PYTHON" -m genmod bench --device cuda --dtype bfloat16 --suite models --workload "VAE decoder" --rounds 7 --json "$OUT/decoders_bfloat16.json"; }
critics() { "$PYTHON" -m genmod bench --device cuda --dtype bfloat16 --suite models --workload "critic" --rounds 5 --json "$OUT/critics_bfloat16.json"; }

ALL=(build doctor battery recipes kernels memcheck racecheck gaussian losses aggregate norms convolutions decoders critics steps)
if [[ "${1:-}" == list ]]; then printf '%s\n' "${ALL[@]}"; exit; fi

failed=0
for step in "${@:-${ALL[@]}}"; do
  if ! declare -F "$step" >/dev/null; then echo "no step named '$step'; known: ${ALL[*]}" >&2; exit 2; fi
  export -f "$step" measured
  start=$SECONDS
  OUT=$OUT PYTHON=$PYTHON timeout "$LIMIT" bash -c "$step" >"$OUT/$step.log" 2>&1
  code=$?
  (( code )) && failed=1
  echo "$step: exit code $code after $((SECONDS - start)) s, $OUT/$step.log" | tee -a "$OUT/steps.txt"
done
exit $failed

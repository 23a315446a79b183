#!/bin/sh
# Checks and measures arclet on this machine's GPU and writes one text report: run.sh [REPORT]
# Part of the folder that tools/pack-gpu makes; needs an NVIDIA driver, no Rust and no CUDA toolkit.
# Exit: 0 all passed, 1 something failed, 4 no driver or no GPU.
set -u
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cd "$root" || exit 1

die() {
    echo "run.sh: $1" >&2
    exit 4
}

find_driver() {
    ldconfig -p 2>/dev/null | grep -q 'libcuda\.so\.1' && return
    for folder in $(echo "${LD_LIBRARY_PATH:-}" | tr ':' ' ') /usr/lib/wsl/lib; do
        [ -e "$folder/libcuda.so.1" ] && return
    done
    return 1
}

PATH=$PATH:/sbin:/usr/sbin
find_driver || die "this machine has no NVIDIA driver (libcuda.so.1 is neither known to ldconfig nor in LD_LIBRARY_PATH)"
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
[ -n "$gpu" ] || die "there is a driver, but nvidia-smi is missing or finds no GPU: $(nvidia-smi 2>&1 | head -n 3)"

while read -r name; do
    [ -x "tests/$name" ] || { gzip -dc "tests/$name.gz" >"tests/$name" && chmod +x "tests/$name"; } || exit 1
done <TESTS

commit=$(cat COMMIT)
slug=$(echo "$gpu" | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9\n' '-')
report=${1:-$root/$(date -u +%Y-%m-%d)-$slug-$commit.txt}
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
: >"$report" || exit 1
export ARCLET_TEST_DRIVER=real ARCLET_TEST_ROOT="$root"
summary=
failed=0

say() {
    echo "$1" | tee -a "$report"
}

# step NAME COMMAND...: everything goes to the report, the end of it to the terminal.
step() {
    name=$1
    shift
    say ""
    say "== $name"
    say "\$ $*"
    begin=$(date +%s)
    "$@" >"$log" 2>&1
    code=$?
    cat "$log" >>"$report"
    tail -n 12 "$log"
    result=ok
    if [ $code -ne 0 ]; then
        result="FAILED (exit $code)"
        failed=$((failed + 1))
    fi
    say "-- $name: $result, $(($(date +%s) - begin)) s"
    summary="$summary$name: $result
"
}

skip() {
    say ""
    say "-- $1: not run, $2"
    summary="$summary$1: not run, $2
"
}

say "arclet on a GPU"
say "date     $(date -u +%Y-%m-%dT%H:%M:%SZ)"
say "commit   $commit"
say "binary   sha256 $(sha256sum arclet | cut -d ' ' -f 1)"
say "machine  $(uname -srm), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(getconf _NPROCESSORS_ONLN) CPUs"
say "GPU      name, compute capability, driver, memory, clock limits, power limit, throttling:"
step nvidia-smi nvidia-smi \
    --query-gpu=name,compute_cap,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,clocks_throttle_reasons.active \
    --format=csv,noheader
step doctor ./arclet doctor

while read -r name; do
    step "tests $name" "tests/$name" --test-threads=1
done <TESTS

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
for tool in memcheck racecheck; do
    while read -r name; do
        if [ -n "$sanitizer" ]; then
            step "$tool $name" "$sanitizer" --tool $tool --error-exitcode 99 "tests/$name" --test-threads=1
        else
            skip "$tool $name" "compute-sanitizer is not on this machine"
        fi
    done <TESTS
done

step bench ./arclet bench --device cuda
step "bench nanodit" ./arclet bench --device cuda --model nanodit --steps 100 --guidance-scale 3
step tune ./arclet bench --device cuda --tune tiles.tsv
if python3 -c 'import numpy, torch; assert torch.cuda.is_available()' 2>/dev/null; then
    step peers python3 benches/peers/run.py --arclet ./arclet
else
    skip peers "python3 has no torch that sees the GPU, or no numpy"
fi

say ""
say "== summary"
say "$summary"
say "report: $report"
[ $failed -eq 0 ] || {
    say "$failed step(s) failed"
    exit 1
}
say "all steps that ran passed"

# Where things lie and how the scripts here speak; every one of them reads this first.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${XGR_VENV:-$root/.venv}
cache=$root/.cache
log=$cache/setup.log

say() { printf '%s\n' "$*"; }

# The first line says what is wrong, the others what to do about it.
complain() {
    printf 'error: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '       %s\n' "$@" >&2
}

fail() {
    complain "$@"
    exit 1
}

# The comment at the top of a script is its help.
help_if_asked() {
    case ${1:-} in
        -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;;
        *) return 0 ;;
    esac
    exit 0
}

# Runs a command with its output in the log; on failure shows the end of it and the remedy given first.
logged() {
    local remedy=$1
    shift
    printf '\n$ %s\n' "$*" >>"$log"
    if ! "$@" >>"$log" 2>&1; then
        tail -n 15 "$log" >&2
        fail "this command failed: $*" "$remedy" "The whole output is in $log"
    fi
}

# pytest in that environment, and how long it took.
test_in() {
    local began=$SECONDS code=0
    say "== pytest ${*:2}"
    "$1/bin/python" -m pytest --durations=10 --durations-min=5 "${@:2}" || code=$?
    say "== took $((SECONDS - began)) s: pytest ${*:2}"
    return $code
}

has_gpu() { [ -e /dev/nvidia0 ] || nvidia-smi -L >/dev/null 2>&1; }

# Where SGLang is installed. Beside a CPU torch its packages break a plain `import transformers`, so without a
# GPU it has an environment of its own.
sglang_environment() {
    if has_gpu; then
        say "$venv"
    else
        say "${XGR_SGLANG_VENV:-$root/.venv-sglang}"
    fi
}

# The model backend that these flags choose; as in xgr, the last one counts, and a flag counts before
# XGR_MODEL_BACKEND.
model_backend() {
    local backend=${XGR_MODEL_BACKEND:-auto}
    while [ $# -gt 0 ]; do
        case $1 in
            --model-backend) backend=${2:-} ;;
            --model-backend=*) backend=${1#*=} ;;
        esac
        shift
    done
    say "$backend"
}

# Makes the environment for the given model backend, and `venv` its folder.
set_up_for() {
    if [ "$1" = sglang ]; then
        "$root/deploy/setup" --sglang
        venv=$(sglang_environment)
    else
        "$root/deploy/setup"
    fi
}

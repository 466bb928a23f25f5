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

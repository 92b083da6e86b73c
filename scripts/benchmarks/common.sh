# shellcheck shell=bash
# shellcheck disable=SC2034 # its variables are for those who source it
# What the benchmarks share: arguments, figures, verdicts.

# shellcheck source=scripts/lib.sh
. scripts/lib.sh
say() { printf 'bench: %s\n' "$*"; }
die() { printf 'bench: error: %s\n' "$*" >&2; exit 1; }

mb=
rounds=3
sets=20000
shift # the benchmark's own name
while [ $# -gt 0 ]; do
    case $1 in
    --mb | --rounds | --sets)
        [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || die "$1 wants a number"
        printf -v "${1#--}" '%d' "$2"
        shift 2
        ;;
    *) die "unknown argument '$1': see scripts/bench --help" ;;
    esac
done
gnu_time() { command time --version 2>&1 | grep -q GNU; }
gnu_time || apt_install time
folder=$(mktemp -d "${PGLIFE_BENCH_DIR:-/var/tmp}/pglife-bench.XXXXXX")
now() { date +%s.%N; }
seconds() { awk -v from="$1" -v to="$2" 'BEGIN { printf "%.2f\n", to - from }'; }
median() { sort -g "$1" | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
largest() { sort -g "$1" | tail -n 1; }
mib() { awk -v b="$1" 'BEGIN { printf "%.1f", b / 1048576 }'; }
quotient() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }

unmet=0
# goal WHAT VALUE LIMIT [UNIT]
goal() { verdict 'at most' "$2" "$3" "$@"; }
# goal_at_least WHAT VALUE LIMIT [UNIT]
goal_at_least() { verdict 'at least' "$3" "$2" "$@"; }
# verdict WORDS SMALLER LARGER WHAT VALUE LIMIT [UNIT]
verdict() {
    local verdict=met
    awk -v a="$2" -v b="$3" 'BEGIN { exit !(a <= b) }' || { verdict='NOT met'; unmet=1; }
    printf '%-44s %8s %-4s goal: %s %5s  %s\n' "$4" "$5" "${7:-}" "$1" "$6" "$verdict"
}

machine() { printf '\n%s cores, %s, Docker %s' "$(nproc)" "$(sed -n 's/^model name\t*: //p' /proc/cpuinfo | head -n 1)" \
    "$(docker version --format '{{.Server.Version}}')"; }

server= # a container, removed at the end
# shellcheck disable=SC2317 # called by the trap
cleanup() {
    [ -z "$server" ] || docker rm -fv "$server" >/dev/null 2>&1 || true
    rm -rf "$folder"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

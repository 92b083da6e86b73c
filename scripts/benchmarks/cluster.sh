# shellcheck shell=bash
# shellcheck disable=SC2034,SC2119,SC2120 # its variables and functions are for those who source it
# A cluster with "$mb" MB of dump data in its database "bench"; sourced by the benchmarks that need one.
#
# Before it: $default_mb (3000), $major (17), $network (Docker's bridge), which is made, and removed at the end.
# After it: $cluster, $image; pglife, sql, and policy TEXT, which adds to the cluster's policy; $label, for whatever else
# Docker makes for the benchmark: it is removed at the end.

# shellcheck source=scripts/benchmarks/common.sh
. scripts/benchmarks/common.sh
mb=${mb:-${default_mb:-3000}}
major=${major:-17}
network=${network:-}
scripts/setup demo
[ "$major" = 17 ] || scripts/setup images "postgres-$major"

cluster="bench-$$"
label="bench=$cluster"
extra_image= # removed at the end, as is a cluster "$cluster-copy"
pglife() { target/pglife --config "$folder/pglife.toml" --progress none "$@"; }
# shellcheck disable=SC2317 # called by the trap
cleanup() {
    local made
    for made in "$cluster" "$cluster-copy"; do
        pglife cluster remove "$made" --volumes --yes >/dev/null 2>&1 || true
    done
    # Also what an upgrade leaves that was cut.
    for made in "$label" "pglife.cluster=$cluster"; do
        docker ps -aq --filter "label=$made" | xargs -r docker rm -fv >/dev/null 2>&1 || true
        docker volume ls -q --filter "label=$made" | xargs -r docker volume rm >/dev/null 2>&1 || true
    done
    [ -z "$network" ] || docker network rm "$network" >/dev/null 2>&1 || true
    [ -z "$extra_image" ] || docker rmi "$extra_image" >/dev/null 2>&1 || true
    rm -rf "$folder"
}

mkdir "$folder/policies"
cat >"$folder/pglife.toml" <<END
state_dir = "state"
policies = "policies"
[repos.local]
type = "local"
path = "repo"
END
policy() {
    {
        printf '[cluster]\nmajor = "%s"\n' "$major"
        [ -z "$network" ] || printf 'network = "%s"\n' "$network"
        printf '%s\n' "${1:-}"
    } >"$folder/policies/$cluster.toml"
}
[ -z "$network" ] || docker network create "$network" >/dev/null
policy
pglife --quiet repo init
pglife --quiet cluster create "$cluster" >/dev/null
image=$(docker inspect --format '{{.Image}}' "$cluster-db")

say "filling in $mb MB"
sql() { docker exec -i "$cluster-db" psql -X -q -v ON_ERROR_STOP=1 -U postgres -d bench "$@"; }
docker exec "$cluster-db" createdb -U postgres bench
sql -v mb="$mb" -f - <tests/it/fixtures/large.sql >/dev/null
sql -c 'vacuum (analyze)' -c checkpoint

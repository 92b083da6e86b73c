# shellcheck shell=bash
# shellcheck disable=SC2034,SC2119,SC2120 # its variables and functions are for those who source it
# A cluster with "$mb" MB of dump data in its database "bench"; sourced by the benchmarks that need one.
#
# After it: $cluster, $image; pglife, sql, and policy TEXT, which adds to the cluster's policy.

# shellcheck source=scripts/benchmarks/common.sh
. scripts/benchmarks/common.sh
mb=${mb:-3000}
scripts/setup demo

cluster="bench-$$"
extra_image= # removed at the end, as is a cluster "$cluster-copy"
pglife() { target/pglife --config "$folder/pglife.toml" --progress none "$@"; }
# shellcheck disable=SC2317 # called by the trap
cleanup() {
    local made
    for made in "$cluster" "$cluster-copy"; do
        pglife cluster remove "$made" --volumes --yes >/dev/null 2>&1 || true
    done
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
policy() { printf '[cluster]\nmajor = "17"\n%s\n' "${1:-}" >"$folder/policies/$cluster.toml"; }
policy
pglife --quiet repo init
pglife --quiet cluster create "$cluster" >/dev/null
image=$(docker inspect --format '{{.Image}}' "$cluster-db")

say "filling in $mb MB"
sql() { docker exec -i "$cluster-db" psql -X -q -v ON_ERROR_STOP=1 -U postgres -d bench "$@"; }
docker exec "$cluster-db" createdb -U postgres bench
sql -v mb="$mb" -f - <tests/it/fixtures/large.sql >/dev/null
sql -c 'vacuum (analyze)' -c checkpoint

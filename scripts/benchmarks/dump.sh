# shellcheck shell=bash
# Dumps. scripts/bench sources it and says what it does.

# shellcheck source=scripts/benchmarks/cluster.sh
. scripts/benchmarks/cluster.sh

# bare NAME PG_DUMP-OPTION...: seconds of pg_dump itself, where a worker would run: the cluster's image, its network, its
# socket. Without the second that starting a container takes, which pglife's figure includes.
bare() {
    local name=$1
    shift
    # shellcheck disable=SC2016 # the container's shell runs it
    docker run --rm --network "container:$cluster-db" --volumes-from "$cluster-db" --log-driver none --entrypoint bash "$image" -c '
        TIMEFORMAT=%R
        time pg_dump --host /data/run --username postgres --dbname bench --format custom "$@" >/dev/null' bash "$@" \
        2>"$folder/err" >/dev/null || { cat "$folder/err" >&2; die "$name failed"; }
    tail -n 1 "$folder/err" >>"$folder/$name.s"
}
# answer KEY: a number in the JSON that 'pglife backup' printed.
answer() { sed -nE 's/.*"'"$1"'": ([0-9]+).*/\1/p' "$folder/answer.json"; }
# backup NAME FACTS: with as much said of the content as FACTS asks for, which drills compare later.
backup() {
    local from to name=$1
    policy "[drill]
facts = \"$2\""
    from=$(now)
    command time --format %M --output "$folder/control" target/pglife --config "$folder/pglife.toml" --progress none \
        --output json backup "$cluster" >"$folder/answer.json"
    to=$(now)
    seconds "$from" "$to" >>"$folder/$name.s"
    tail -n 1 "$folder/control" | awk '{ print $1 * 1024 }' >>"$folder/control.bytes"
    answer worker_peak_memory_bytes >>"$folder/worker.bytes"
    answer plain_bytes >"$folder/plain.bytes"
    answer stored_bytes >"$folder/stored.bytes"
    # Space for the next round; no backup is verified here.
    rm -rf "${folder:?}/repo/$cluster"
}

bare warm --compress=0 # so that the first one measured does not read from disk alone
for ((round = 1; round <= rounds; round++)); do
    bare none --compress=0
    bare zstd3 --compress=zstd:3
    bare gzip
    backup pglife counts
    backup full full
    say "round $round of $rounds: none $(tail -n 1 "$folder/none.s") s, zstd:3 $(tail -n 1 "$folder/zstd3.s") s," \
        "gzip $(tail -n 1 "$folder/gzip.s") s, pglife $(tail -n 1 "$folder/pglife.s") s, with hashes $(tail -n 1 "$folder/full.s") s"
done

ours=$(median "$folder/pglife.s")
machine
printf ', PostgreSQL %s, pglife %s\n' "$(sql -At -c 'show server_version')" "$(target/pglife --version | cut -d' ' -f2)"
printf 'dump of %s MB, stored as %s MB; medians of %d rounds\n\n' $(($(<"$folder/plain.bytes") / 1000000)) \
    $(($(<"$folder/stored.bytes") / 1000000)) "$rounds"
for name in none zstd3 gzip pglife full; do
    case $name in
    none) what='pg_dump -Fc --compress=0' ;;
    zstd3) what='pg_dump -Fc --compress=zstd:3' ;;
    gzip) what='pg_dump -Fc (gzip)' ;;
    pglife) what='pglife backup (zstd:1), rows counted' ;;
    full) what='pglife backup (zstd:1), rows hashed' ;;
    esac
    printf '%-44s %8s s\n' "$what" "$(median "$folder/$name.s")"
done
echo
goal 'pglife / pg_dump -Fc --compress=0' "$(quotient "$ours" "$(median "$folder/none.s")")" 1.25
goal 'pglife / pg_dump -Fc --compress=zstd:3' "$(quotient "$ours" "$(median "$folder/zstd3.s")")" 0.75
goal 'pglife / pg_dump -Fc (gzip)' "$(quotient "$ours" "$(median "$folder/gzip.s")")" 0.3
goal 'peak memory of the worker' "$(mib "$(largest "$folder/worker.bytes")")" 128 MiB
goal 'peak memory of the control plane' "$(mib "$(largest "$folder/control.bytes")")" 128 MiB

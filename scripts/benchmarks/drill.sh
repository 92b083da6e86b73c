# shellcheck shell=bash
# Drills. scripts/bench sources it and says what it does.

# shellcheck source=scripts/benchmarks/cluster.sh
. scripts/benchmarks/cluster.sh

have zstd || apt_install zstd

# by_hand: unpacking and pg_restore as somebody would type them, on two cores, into a new server that is up already.
by_hand() {
    local from to dump
    dump=$(find "$folder/repo/$cluster" -name bench.dump.zst)
    server=$(docker run -d --network none -v "$folder:/bench:ro" "$image")
    until docker exec "$server" psql -U postgres -Atc 'select 1' >/dev/null 2>&1; do sleep 0.2; done
    docker exec "$server" createdb -U postgres bench
    from=$(now)
    zstd -dcq "$dump" >"$folder/bench.dump"
    docker exec "$server" pg_restore -U postgres --dbname bench --jobs 2 --exit-on-error /bench/bench.dump
    to=$(now)
    seconds "$from" "$to" >>"$folder/hand.s"
    rm "$folder/bench.dump"
    docker rm -fv "$server" >/dev/null
    server=
}
# peak PID: the most memory that workers of that command have had, in bytes, until it ends.
peak() {
    local worker most=0 has
    while kill -0 "$1" 2>/dev/null; do
        for worker in $(pgrep -f 'pglife worker$' || true); do
            has=$(awk '/^VmHWM/ { print $2 * 1024 }' "/proc/$worker/status" 2>/dev/null || true)
            [ "${has:-0}" -le "$most" ] || most=$has
        done
        sleep 0.2
    done
    echo "$most"
}
# drill NAME: 'pglife drill', from start to exit.
drill() {
    local from to pid
    from=$(now)
    command time --format %M --output "$folder/control" target/pglife --config "$folder/pglife.toml" --progress none \
        --output json drill "$cluster" >"$folder/drill.json" &
    pid=$!
    peak $pid >>"$folder/worker.bytes"
    wait $pid
    to=$(now)
    seconds "$from" "$to" >>"$folder/$1.s"
    tail -n 1 "$folder/control" | awk '{ print $1 * 1024 }' >>"$folder/control.bytes"
    # The certificate has a line for each check: of the facts it says how long they took in the server that does nothing else.
    python3 -c 'import json, sys; print(next(c["seconds"] for c in json.load(sys.stdin)["items"][0]["checks"] if c["name"] == "facts"))' \
        <"$folder/drill.json" >>"$folder/$1.facts"
}
# backup FACTS
backup() {
    rm -rf "${folder:?}/repo/$cluster"
    policy "[drill]
facts = \"$1\""
    pglife --quiet backup "$cluster" >/dev/null
}

for ((round = 1; round <= rounds; round++)); do
    backup full
    by_hand
    drill full
    backup counts
    drill counts
    say "round $round of $rounds: by hand $(tail -n 1 "$folder/hand.s") s, drill $(tail -n 1 "$folder/full.s") s," \
        "of it facts $(tail -n 1 "$folder/full.facts") s, counted $(tail -n 1 "$folder/counts.facts") s"
done

bytes=$(sql -At -c "select sum(pg_table_size(oid)) from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace")
# rate FILE: megabytes of tables in a second.
rate() { awk -v bytes="$bytes" -v s="$(median "$1")" 'BEGIN { printf "%.0f", bytes / 1000000 / s }'; }
machine
printf ', PostgreSQL %s, pglife %s\n' "$(sql -At -c 'show server_version')" "$(target/pglife --version | cut -d' ' -f2)"
printf 'tables of %s MB; medians of %d rounds\n\n' $((bytes / 1000000)) "$rounds"
printf '%-44s %8s s\n' 'zstd -d, pg_restore --jobs 2, by hand' "$(median "$folder/hand.s")" \
    'pglife drill, rows hashed' "$(median "$folder/full.s")" 'pglife drill, rows counted' "$(median "$folder/counts.s")"
echo
goal 'drill, rows hashed / by hand' "$(quotient "$(median "$folder/full.s")" "$(median "$folder/hand.s")")" 1.3
goal_at_least 'facts, rows hashed' "$(rate "$folder/full.facts")" 150 MB/s
goal_at_least 'facts, rows counted' "$(rate "$folder/counts.facts")" 800 MB/s
goal 'peak memory of the largest worker' "$(mib "$(largest "$folder/worker.bytes")")" 256 MiB
goal 'peak memory of the control plane' "$(mib "$(largest "$folder/control.bytes")")" 256 MiB

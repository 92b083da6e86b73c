# shellcheck shell=bash
# Upgrades to a newer major, as a client sees them. scripts/bench sources it and says what it does.

# shellcheck disable=SC2034 # it is for cluster.sh
default_mb=1000
major=15
newer=17
network=pglife-bench-$$
# shellcheck source=scripts/benchmarks/cluster.sh
. scripts/benchmarks/cluster.sh

both=pglife-bench-both
extra_image=$both
say "putting the programs of PostgreSQL $major beside those of $newer"
# Libraries that the newer Debian has under the same name are its own; the just-in-time compiler's would be a hundred megabytes.
docker build -q -t $both - >/dev/null 2>"$folder/err" <<END || { cat "$folder/err" >&2; die "they could not be put together"; }
FROM pglife/postgres:$major AS old
RUN cd /usr/lib/postgresql/$major && rm -f lib/llvmjit* && mkdir /libraries && \
    ldd bin/* lib/*.so | awk '\$3 ~ /^\// { print \$3 }' | sort -u | xargs cp -t /libraries
FROM pglife/postgres:$newer
COPY --from=old /usr/lib/postgresql/$major /usr/lib/postgresql/$major
COPY --from=old /usr/share/postgresql/$major /usr/share/postgresql/$major
COPY --from=old /libraries /libraries
RUN for library in /libraries/*; do ldconfig -p | grep -q "\${library##*/} " || mv "\$library" /usr/local/lib; done && ldconfig && \
    /usr/lib/postgresql/$major/bin/postgres --version && rm -r /libraries && \
    apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-psycopg2 >/dev/null && rm -rf /var/lib/apt/lists/*
END

# The goals are for up to 200 relations; a small table is five, with its indexes and its TOAST.
sql -c "do \$\$ begin for t in 31 .. $mb / 10 loop execute 'drop table lookup_' || t; end loop; end \$\$" -c 'vacuum (analyze)' -c checkpoint
relations=$(sql -At -c 'select count(*) from pg_class where oid >= 16384')
bytes=$(sql -At -c "select pg_database_size('bench')")
version=$(sql -At -c 'show server_version')

# --- a client ------------------------------------------------------------------------------------------------

PGPASSWORD=$(<"$folder/state/secrets/$cluster.admin")
export PGPASSWORD
# await WHAT COMMAND...: until it succeeds.
await() {
    local what=$1 deadline=$((SECONDS + 600))
    shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || die "$what: not within ten minutes"
        sleep 0.1
    done
}
answers() { docker exec "$1" psql -X -U postgres -c 'select 1' >/dev/null 2>&1; }
enough() { [ "$(wc -l <"$folder/attempts")" -ge 40 ]; }
answered_after() { awk -v after="$1" '$2 && $1 > after { found = 1 } END { exit !found }' "$folder/attempts"; }
# seen NAME HOST COMMAND...: the longest time without an answer for a client of HOST around the command, which brings another major, in
# NAME.down; the seconds of the command itself in NAME.s; in late.ms, how long before the first answer it had asked in vain. An address
# that is not there yet is asked for again every 50 ms, too, and not every second.
seen() {
    local name=$1 host=$2 from to probe
    shift 2
    sync
    : >"$folder/attempts"
    probe=$(docker run -d --label "$label" --network "$network" --env PGPASSWORD --log-driver none \
        --sysctl net.ipv4.neigh.eth0.retrans_time_ms=50 \
        -v "$PWD/scripts/benchmarks/probe.py:/probe.py:ro" -v "$folder/attempts:/attempts" \
        --entrypoint sh $both -c 'exec python3 /probe.py "$1" >/attempts' sh "$host")
    await "attempts to reach $host" enough
    from=$(now)
    "$@"
    to=$(now)
    await "answers from $host after $name" answered_after "$to"
    docker rm -f "$probe" >/dev/null
    seconds "$from" "$to" >>"$folder/$name.s"
    awk -v from="$from" '
        !$2 { vain = $1; next }
        !first { first = $2 }
        answered && $1 > from && $1 - answered > gap { gap = $1 - answered; late = $1 - vain }
        { answered = $1; last = $2 }
        END { printf "%.2f %.0f\n", gap, late * 1000; exit last == first }' <(sort -g "$folder/attempts") >"$folder/gap" || die "$name: the major is the same as before"
    cut -d' ' -f1 "$folder/gap" >>"$folder/$name.down"
    cut -d' ' -f2 "$folder/gap" >>"$folder/late.ms"
}

# --- pglife --------------------------------------------------------------------------------------------------

# quietly COMMAND...: what it says is of interest only where it fails.
quietly() { "$@" >"$folder/said" 2>&1 || { cat "$folder/said" >&2; die "'$*' failed"; }; }
upgrade() { quietly pglife upgrade "$cluster" --to "$newer" --method "$1" --yes; }
rollback() { quietly pglife upgrade rollback "$cluster"; }
# steps: what each step of the last upgrade took, the longest first.
steps() {
    pglife --quiet --output json upgrade status "$cluster" | python3 -c '
import json, sys
steps = json.load(sys.stdin)["items"][0]["report"]["seconds"]
print(", ".join(f"{step} {seconds:.1f}" for step, seconds in sorted(steps, key=lambda step: -step[1]) if seconds >= 0.1))'
}

# --- by hand -------------------------------------------------------------------------------------------------

peer=$cluster-peer # under this name clients find it
new_volume() { docker volume create --label "$label"; }
# serve MAJOR VOLUME OPTION...: a server; prints its container.
serve() {
    local version=$1 data=$2
    shift 2
    docker run -d --label "$label" -v "$data:/data" "$@" "pglife/postgres:$version"
}
as_peer=(--network "$network" --network-alias "$peer")
# by_hand OPTION... WHAT: what by_hand.sh has under that name.
by_hand() {
    quietly docker run --rm --label "$label" --network none -v "$PWD/scripts/benchmarks/by_hand.sh:/by_hand.sh:ro" \
        --entrypoint /by_hand.sh "${@:1:$#-1}" $both "${!#}" "$major" $newer
}
# peer_serves: with the cluster's data and the old major. Its container in $server, its volume in $volume.
peer_serves() {
    volume=$(new_volume)
    docker run --rm -v "$original:/original:ro" -v "$volume:/data" --entrypoint sh $both -c 'cp -a /original/. /data && sync -f /data'
    server=$(serve "$major" "$volume" "${as_peer[@]}")
    await "$peer" answers "$server"
}
# peer_goes [VOLUME]...
peer_goes() {
    docker ps -aq --filter "label=$label" | xargs docker rm -f >/dev/null
    docker volume rm "$volume" "$@" >/dev/null
}

bare() {
    docker stop -t 120 "$server" >/dev/null
    by_hand -v "$volume:/data" copy
    serve $newer "$volume" "${as_peer[@]}" >/dev/null
}
in_place() {
    docker stop -t 120 "$server" >/dev/null
    server=$(docker run -d --label "$label" "${as_peer[@]}" -v "$volume:/data" -v "$PWD/scripts/benchmarks/by_hand.sh:/by_hand.sh:ro" \
        --entrypoint /by_hand.sh $both "$1" "$major" $newer)
    await "PostgreSQL $newer" serves_in_place
}
serves_in_place() {
    [ "$(docker inspect --format '{{.State.Running}}' "$server")" = true ] || { docker logs "$server" >&2; die "upgrade in place failed"; }
    [[ $(tail -n 1 "$folder/attempts") = *" $newer" ]]
}
# The new server runs already; clients do not find it.
dump() {
    docker network disconnect "$network" "$server"
    by_hand -v "$volume:/old" -v "$other:/new" dump
    docker network connect --alias "$peer" "$network" "$new"
}

# --- rounds --------------------------------------------------------------------------------------------------

original=$(new_volume)
docker stop -t 120 "$cluster-db" >/dev/null
docker run --rm --volumes-from "$cluster-data" -v "$original:/original" --entrypoint cp $both -a "/data/$major" /original
docker start "$cluster-db" >/dev/null
await "$cluster" answers "$cluster-db"

last() { tail -n 1 "$folder/$1.down"; }
for ((round = 1; round <= rounds; round++)); do
    seen pglife "$cluster-db" upgrade pg_upgrade
    steps >"$folder/pglife.steps"
    seen rollback "$cluster-db" rollback
    seen pglife-dump "$cluster-db" upgrade dump
    steps >"$folder/pglife-dump.steps"
    seen rollback "$cluster-db" rollback

    peer_serves
    by_hand -v "$volume:/data" initialise
    seen bare "$peer" bare
    peer_goes
    for how in in-place in-place-fast; do
        peer_serves
        seen $how "$peer" in_place $how
        peer_goes
    done
    peer_serves
    other=$(new_volume)
    new=$(serve $newer "$other" --network bridge)
    await 'the new server' answers "$new"
    seen dump "$peer" dump
    peer_goes "$other"
    say "round $round of $rounds: down: pglife $(last pglife) s, with dump $(last pglife-dump) s, rollback $(last rollback) s;" \
        "bare $(last bare) s, in place $(last in-place) s, dump by hand $(last dump) s"
done

machine
printf ', PostgreSQL %s to %s, pglife %s\n' "${version%% *}" "$(docker run --rm --entrypoint postgres $both --version | cut -d' ' -f3)" \
    "$(target/pglife --version | cut -d' ' -f2)"
printf 'database of %s MB, %s relations; medians of %d rounds; asked in vain at most %d ms before an answer\n\n' $((bytes / 1000000)) "$relations" \
    "$rounds" "$(largest "$folder/late.ms")"
line() { # line WHAT NAME [s]
    printf '%-52s %7s s' "$1" "$(median "$folder/$2.down")"
    [ -z "${3:-}" ] || printf '  the whole command %7s s' "$(median "$folder/$2.s")"
    echo
}
echo 'nobody is served for'
line 'pglife upgrade --method pg_upgrade' pglife s
line 'pglife upgrade rollback' rollback s
line 'pglife upgrade --method dump' pglife-dump s
line 'by hand: stop, pg_upgrade, start' bare
line "pgautoupgrade's way: pg_upgrade --link" in-place
line "pgautoupgrade's way, without REINDEX" in-place-fast
line 'by hand: pg_dump | psql' dump
printf '\nsteps of pg_upgrade: %s\nsteps of dump: %s\n\n' "$(<"$folder/pglife.steps")" "$(<"$folder/pglife-dump.steps")"
ratio() { printf '%-44s %8s\n' "$1" "$(quotient "$(median "$folder/$2.down")" "$(median "$folder/$3.down")")"; }
ratio 'pglife, pg_upgrade / by hand' pglife bare
ratio "pglife, pg_upgrade / pgautoupgrade's way" pglife in-place
ratio 'the same without REINDEX' pglife in-place-fast
ratio 'pglife, pg_upgrade / pg_dump | psql' pglife dump
ratio 'pglife, dump / pg_dump | psql' pglife-dump dump
goal 'down: pg_upgrade, everything compared' "$(median "$folder/pglife.down")" 25 s
goal 'of it more than by hand' "$(awk -v a="$(median "$folder/pglife.down")" -v b="$(median "$folder/bare.down")" 'BEGIN { printf "%.2f", a - b }')" 4 s
goal 'down: rollback' "$(median "$folder/rollback.down")" 10 s

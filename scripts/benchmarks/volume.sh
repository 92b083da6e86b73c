# shellcheck shell=bash
# Copies of a running server's files. scripts/bench sources it and says what it does.

# shellcheck source=scripts/benchmarks/peers.sh
. scripts/benchmarks/peers.sh
# ours NAME CODEC STOCK SUFFIX: 'pglife backup --kind volume', from start to exit; and the size of the very same tar, by the
# command STOCK, which unpacks with -dc.
ours() {
    local from to name=$1 codec=$2 stock=$3 suffix=$4
    policy "[backup.volume]
codec = \"$codec\""
    from=$(now)
    command time --format %M --output "$folder/control" target/pglife --config "$folder/pglife.toml" --progress none \
        --output json backup "$cluster" --kind volume >"$folder/answer.json"
    to=$(now)
    seconds "$from" "$to" >>"$folder/pglife$name.s"
    tail -n 1 "$folder/control" | awk '{ print $1 * 1024 }' >>"$folder/control.bytes"
    answer worker_peak_memory_bytes >>"$folder/worker.bytes"
    answer stored_bytes >"$folder/pglife$name.stored"
    # shellcheck disable=SC2086 # the command and its options
    ${stock%% *} -q -dc "$folder/repo/$cluster"/*/sets/*/volume.tar."$suffix" | $stock -q | wc -c >"$folder/stock$name.stored"
    answer plain_bytes >"$folder/plain.bytes"
}
restore() {
    local from to
    from=$(now)
    pglife --quiet restore "$cluster" --backup latest:volume --into "$cluster-copy" >/dev/null
    to=$(now)
    seconds "$from" "$to" >>"$folder/restore-pglife.s"
    pglife --quiet cluster remove "$cluster-copy" --volumes --yes >/dev/null
    rm -rf "${folder:?}/repo/$cluster"
}

# A running server changes files under tar's hands, which says so and ends with 1.
tar='{ tar -C / -cf - data 2>/dev/null || [ $? = 1 ]; }'
basebackup='pg_basebackup -h /data/run -U postgres -Ft -X fetch --checkpoint=fast -D'
peer warm "$tar >/dev/null | cat"
rm "$folder/warm.s"
for ((round = 1; round <= rounds; round++)); do
    for level in 1 3; do
        peer "tar$level" "$tar | zstd -q -T2 -$level >volume.tar.zst"
        stored "tar$level"
        [ $level = 1 ] || peer restore-tar "mkdir back; zstd -q -dc volume.tar.zst | tar -x -C back"
        clear_out
        peer "basebackup$level" "$basebackup copy --compress=server-zstd:level=$level,workers=2"
        stored "basebackup$level"
        clear_out
        peer create "$stanza $connection stanza-create" && rm "$folder/create.s"
        peer "pgbackrest$level" "$stanza $connection --process-max=2 --compress-type=zst --compress-level=$level --no-archive-check --start-fast backup --type=full"
        stored "pgbackrest$level"
        [ $level = 1 ] || peer restore-pgbackrest "mkdir -m 0700 back; $stanza --pg1-path=/out/back --process-max=2 restore"
        clear_out
        ours $level "zstd:$level" "zstd -T2 -$level" zst
        [ $level = 1 ] || restore
        rm -rf "${folder:?}/repo/$cluster"
    done
    peer restic 'export RESTIC_PASSWORD=bench; restic -q -r r init; restic -q -r r backup /data || [ $? = 3 ]'
    stored restic
    clear_out
    if [ "$round" = 1 ]; then
        peer pigz "$tar | pigz -6 -p 2 >volume.tar.gz"
        stored pigz
        clear_out
        ours gzip gzip:6 'pigz -6' gz
        rm -rf "${folder:?}/repo/$cluster"
    fi
    say "round $round of $rounds: zstd:3: tar $(tail -n 1 "$folder/tar3.s") s, pg_basebackup $(tail -n 1 "$folder/basebackup3.s") s," \
        "pgBackRest $(tail -n 1 "$folder/pgbackrest3.s") s, pglife $(tail -n 1 "$folder/pglife3.s") s"
done

machine
printf ', PostgreSQL %s, %s, pglife %s\n' "$(sql -At -c 'show server_version')" "$(docker run --rm --entrypoint pgbackrest $peers version)" \
    "$(target/pglife --version | cut -d' ' -f2)"
printf 'volumes of %s MB; medians of %d rounds, gzip:6 once\n\n' $(($(<"$folder/plain.bytes") / 1000000)) "$rounds"
line() { # line WHAT NAME
    printf '%-44s %8s s' "$1" "$(median "$folder/$2.s")"
    [ ! -e "$folder/$2.stored" ] || printf '  %6s MB' $(($(<"$folder/$2.stored") / 1000000))
    echo
}
for level in 1 3; do
    line "tar | zstd -T2 -$level" tar$level
    line "pg_basebackup, server zstd:$level, 2 workers" basebackup$level
    line "pgBackRest zst:$level, 2 processes" pgbackrest$level
    line "pglife backup (zstd:$level), the whole command" pglife$level
done
line 'restic' restic
line 'tar | pigz -6 -p 2' pigz
line 'pglife backup (gzip:6), the whole command' pglifegzip
line 'restore: zstd -dc | tar -x' restore-tar
line 'restore: pgBackRest' restore-pgbackrest
line 'restore: pglife, until the server answers' restore-pglife
echo
for level in 1 3; do
    ours=$(median "$folder/pglife$level.s")
    goal "pglife / pg_basebackup, zstd:$level" "$(quotient "$ours" "$(median "$folder/basebackup$level.s")")" 0.95
    goal "pglife / pgBackRest, zstd:$level" "$(quotient "$ours" "$(median "$folder/pgbackrest$level.s")")" 0.70
    goal "pglife / tar | zstd, zstd:$level" "$(quotient "$ours" "$(median "$folder/tar$level.s")")" 0.65
    goal "size, pglife / zstd of the same tar, zstd:$level" "$(quotient "$(<"$folder/pglife$level.stored")" "$(<"$folder/stock$level.stored")")" 1.02
done
goal 'pglife / tar | pigz, gzip:6' "$(quotient "$(median "$folder/pglifegzip.s")" "$(median "$folder/pigz.s")")" 0.50
goal 'size, pglife / pigz of the same tar, gzip:6' "$(quotient "$(<"$folder/pglifegzip.stored")" "$(<"$folder/stockgzip.stored")")" 1.03
goal 'restore: pglife / pgBackRest' "$(quotient "$(median "$folder/restore-pglife.s")" "$(median "$folder/restore-pgbackrest.s")")" 0.75
goal 'peak memory of the worker' "$(mib "$(largest "$folder/worker.bytes")")" 256 MiB
goal 'peak memory of the control plane' "$(mib "$(largest "$folder/control.bytes")")" 64 MiB

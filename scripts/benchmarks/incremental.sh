# shellcheck shell=bash
# Copies of what changed. scripts/bench sources it and says what it does.

# shellcheck source=scripts/benchmarks/peers.sh
. scripts/benchmarks/peers.sh

policy '[backup.volume]
codec = "zstd:3"
full_every = 31'
sql -c "alter system set summarize_wal = on" -c 'select pg_reload_conf()' >/dev/null

# ours NAME: 'pglife backup --kind volume', from start to exit.
ours() {
    local from to
    from=$(now)
    target/pglife --config "$folder/pglife.toml" --progress none --output json backup "$cluster" --kind volume >"$folder/answer.json"
    to=$(now)
    seconds "$from" "$to" >>"$folder/$1.s"
    answer worker_peak_memory_bytes >>"$folder/worker.bytes"
    answer stored_bytes >"$folder/$1.stored"
}
# beside NAME FOLDER COMMAND: peer, and what it added to a folder of theirs.
beside() {
    local before
    before=$(du -sb "$out/$2" 2>/dev/null | cut -f1)
    peer "$1" "$3"
    echo $(($(du -sb "$out/$2" | cut -f1) - ${before:-0})) >"$folder/$1.stored"
}
backrest="$stanza $connection --process-max=2 --compress-type=zst --compress-level=3 --repo1-bundle --repo1-block --no-archive-check --start-fast"
basebackup='pg_basebackup -h /data/run -U postgres -Ft -X fetch --checkpoint=fast --compress=server-zstd:level=3,workers=2'
change() {
    sql -c "update accounts set balance = balance + 1 where (ctid::text::point)[0]::bigint % 25 = $1 and (ctid::text::point)[1] = 1" \
        -c "update events set amount = amount + 1 where (ctid::text::point)[0]::bigint % 60 = $1 and (ctid::text::point)[1] = 1" -c checkpoint
}

peer warm 'tar -C / -cf - data 2>/dev/null | cat >/dev/null'
rm "$folder/warm.s"
for ((round = 1; round <= rounds; round++)); do
    peer create "$stanza $connection stanza-create" && rm "$folder/create.s"
    ours full
    beside full-pgbackrest pgbackrest "$backrest backup --type=full"
    beside full-basebackup . "$basebackup -D full"
    change "$round"
    ours changed
    beside changed-pgbackrest pgbackrest "$backrest backup --type=incr"
    beside changed-basebackup . "$basebackup -D changed --incremental=full/backup_manifest"
    ours unchanged
    from=$(now)
    pglife --quiet restore "$cluster" --backup latest:volume --into "$cluster-copy" >/dev/null
    to=$(now)
    seconds "$from" "$to" >>"$folder/restore.s"
    pglife --quiet cluster remove "$cluster-copy" --volumes --yes >/dev/null
    peer restore-pgbackrest "mkdir -m 0700 back; $stanza --pg1-path=/out/back --process-max=2 restore"
    clear_out
    rm -rf "${folder:?}/repo/$cluster"
    say "round $round of $rounds: what changed: pglife $(tail -n 1 "$folder/changed.s") s, pgBackRest $(tail -n 1 "$folder/changed-pgbackrest.s") s," \
        "pg_basebackup $(tail -n 1 "$folder/changed-basebackup.s") s"
done

machine
printf ', PostgreSQL %s, %s, pglife %s\n' "$(sql -At -c 'show server_version')" "$(docker run --rm --entrypoint pgbackrest $peers version)" \
    "$(target/pglife --version | cut -d' ' -f2)"
printf 'volumes of %s MB, zstd:3; medians of %d rounds\n\n' "$(docker exec "$cluster-db" du -sm --apparent-size /data | cut -f1)" "$rounds"
line() { # line WHAT NAME
    printf '%-44s %8s s' "$1" "$(median "$folder/$2.s")"
    [ ! -e "$folder/$2.stored" ] || printf '  %6s MB' $(($(<"$folder/$2.stored") / 1000000))
    echo
}
line 'full: pglife, with a block index' full
line 'full: pgBackRest, bundles and blocks' full-pgbackrest
line 'full: pg_basebackup' full-basebackup
line 'what changed: pglife' changed
line 'what changed: pgBackRest' changed-pgbackrest
line 'what changed: pg_basebackup --incremental' changed-basebackup
line 'nothing changed: pglife' unchanged
line 'restore: pglife, until the server answers' restore
line 'restore: pgBackRest' restore-pgbackrest
echo
goal 'what changed: pglife / pgBackRest' "$(quotient "$(median "$folder/changed.s")" "$(median "$folder/changed-pgbackrest.s")")" 0.35
goal 'stored: pglife / pgBackRest' "$(quotient "$(<"$folder/changed.stored")" "$(<"$folder/changed-pgbackrest.stored")")" 0.60
goal 'what changed: pglife / pg_basebackup' "$(quotient "$(median "$folder/changed.s")" "$(median "$folder/changed-basebackup.s")")" 1.0
goal 'nothing changed: pglife' "$(median "$folder/unchanged.s")" 2 s
goal 'restore: pglife / pgBackRest' "$(quotient "$(median "$folder/restore.s")" "$(median "$folder/restore-pgbackrest.s")")" 0.75
goal 'full with a block index: pglife / pg_basebackup' "$(quotient "$(median "$folder/full.s")" "$(median "$folder/full-basebackup.s")")" 0.95
goal 'peak memory of the worker' "$(mib "$(largest "$folder/worker.bytes")")" 256 MiB

#!/bin/bash
# by_hand.sh WHAT OLD NEW: one way from major OLD to NEW as somebody would type it, in a container with the programs of both, which has
# the data volume at /data, a data directory for each major in it.
#
#   initialise     makes the new data directory
#   copy           pg_upgrade, into that
#   in-place       what pgautoupgrade does before it lets clients in: initdb, pg_upgrade --link, the old files away, VACUUM (ANALYZE)
#                  and REINDEX of everything; then serves
#   in-place-fast  the same without REINDEX, as with PGAUTO_REINDEX=no
#   dump           everything by pg_dump and psql, from the server with the volume at /old to the one with that at /new
set -euo pipefail
what=$1 old=$2 new=$3
programs=/usr/lib/postgresql
export HOME=/tmp
cd /tmp
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }

initialise() {
    install -d -o postgres -g postgres -m 0700 "/data/$new"
    as_postgres pglife-initdb "/data/$new" postgres
}
upgrade() {
    as_postgres pg_upgrade -b "$programs/$old/bin" -B "$programs/$new/bin" -d "/data/$old" -D "/data/$new" -U postgres \
        --socketdir /tmp --jobs 2 "$@"
}
in_place() {
    initialise
    upgrade --link
    cp -p "/data/$old"/pg_{hba,ident}.conf "/data/$new"
    rm -r "/data/${old:?}"
    as_postgres pg_ctl -D "/data/$new" -w -o "-c listen_addresses='' -c unix_socket_directories=/tmp" start
    as_postgres vacuumdb -h /tmp --all --analyze --no-index-cleanup
    "$@"
    as_postgres pg_ctl -D "/data/$new" -w stop
    exec pglife-entrypoint postgres
}
to_new() { psql -X -q -v ON_ERROR_STOP=1 -h /new/run -U postgres -d postgres >/dev/null; }
dump() {
    local database
    pg_dumpall -h /old/run -U postgres --globals-only | sed '/^CREATE ROLE postgres;$/d' | to_new
    for database in $(psql -X -At -h /old/run -U postgres -c "select datname from pg_database where not datistemplate and datname <> 'postgres'"); do
        pg_dump -h /old/run -U postgres --create "$database" | to_new
    done
}

case $what in
initialise) initialise ;;
copy) upgrade ;;
in-place) in_place as_postgres reindexdb -h /tmp --all --concurrently ;;
in-place-fast) in_place true ;;
dump) dump ;;
*) exit 2 ;;
esac

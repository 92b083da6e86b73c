# shellcheck shell=bash
# shellcheck disable=SC2034 # its variables are for those who source it
# The other tools, beside the server, in its image. Sourced by the benchmarks of volume backups.

# shellcheck source=scripts/benchmarks/cluster.sh
. scripts/benchmarks/cluster.sh
have zstd || apt_install zstd
have pigz || apt_install pigz
peers=pglife-bench-peers
out=$folder/out
mkdir "$out"
extra_image=$peers

say "installing the others beside PostgreSQL 17"
docker build -q -t $peers - >/dev/null 2>"$folder/err" <<END || { cat "$folder/err" >&2; die "the others could not be installed"; }
FROM pglife/postgres:17
USER root
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends pgbackrest pigz restic zstd time >/dev/null && rm -rf /var/lib/apt/lists/*
END
stanza='pgbackrest --stanza=bench --repo1-path=/out/pgbackrest --log-level-file=off --log-level-console=warn --lock-path=/tmp'
connection='--pg1-path=/data/17 --pg1-socket-path=/data/run --pg1-user=postgres'

# peer NAME COMMAND: seconds of a shell command beside the server, in its image, with its volumes, and its work on the disk
# at the end; without the second that starting a container takes, which pglife's figure includes.
peer() {
    local name=$1
    docker run --rm --user root --network "container:$cluster-db" --volumes-from "$cluster-db" -v "$out:/out" --log-driver none \
        --entrypoint bash $peers -c "TIMEFORMAT=%R; set -o pipefail; cd /out; time { { $2; } && sync -f /out; }" \
        >"$folder/said" 2>"$folder/err" || { cat "$folder/said" "$folder/err" >&2; die "$name failed"; }
    tail -n 1 "$folder/err" >>"$folder/$name.s"
}
stored() { du -sb "$out" | cut -f1 >"$folder/$1.stored"; }
clear_out() { find "$out" -mindepth 1 -delete; }
answer() { sed -nE 's/.*"'"$1"'": ([0-9]+).*/\1/p' "$folder/answer.json"; }

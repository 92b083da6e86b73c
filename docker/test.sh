#!/bin/bash
# docker/test.sh [IMAGE... | compose]: checks what the images promise, with real servers. The label pglife.image says
# what an image is; 'compose' tries compose.yaml. Default: every pglife image of this engine, and compose.
# Prints one line a check; ends with 'N passed, N failed'.
# shellcheck disable=SC2016 # check runs some texts with eval, and the containers' shells run others
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
run=images-$$-$(date +%s)
label=pglife.test=images
passed=0
failed=0
# A name, a password and a database that break careless quoting.
admin="o'hara \"x\" \\y"
password="pa'ss\"wo rd\\n\$HOME \`id\` :x ;--ö"
database='my "db" '\''1'

work=$(mktemp -d)
cleanup() {
    local ids
    ids=$(docker ps -aq --filter "label=pglife.test-run=$run")
    # shellcheck disable=SC2086
    [ -z "$ids" ] || docker rm -fv $ids >/dev/null
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

ok() { passed=$((passed + 1)); printf 'ok   %s: %s\n' "$image" "$1"; }
not_ok() { failed=$((failed + 1)); printf 'FAIL %s: %s\n' "$image" "$1"; }
# check NAME COMMAND...: the command's success is the result.
check() {
    local name=$1
    shift
    if "$@" >"$work/out" 2>&1; then ok "$name"; else
        not_ok "$name"
        sed 's/^/     | /' "$work/out" | tail -n 15
    fi
}
fails() { ! "$@"; }
is() { [ "$1" = "$2" ] || { printf 'wanted: %s\ngot:    %s\n' "$2" "$1"; return 1; }; }
contains() { case $1 in *"$2"*) ;; *) printf 'not in: %s\n' "$1"; return 1 ;; esac }
# until_true SECONDS COMMAND...
until_true() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.1
    done
}
labels=(--label "$label" --label "pglife.test-run=$run")
new_data() { docker create "${labels[@]}" pglife/data; }
database_container() { local data=$1; shift; docker run -d "${labels[@]}" --volumes-from "$data" "$@"; }
# in_volumes DATA COMMAND...: in a throwaway busybox that has the same volumes.
in_volumes() { local data=$1; shift; docker run --rm -i "${labels[@]}" --volumes-from "$data" pglife/data "$@"; }
ready() { docker exec "$1" pglife-health; }
# served DB: it answers, at the latest after two minutes; if not, what is known of it.
served() {
    until_true 120 ready "$1" && return
    docker inspect -f 'status {{.State.Status}}, exit code {{.State.ExitCode}}, {{.RestartCount}} restarts' "$1"
    ready "$1" || true
    docker logs --tail 10 "$1" 2>&1
    return 1
}
sql() { local db=$1; shift; docker exec -i "$db" psql -X -At -U postgres "$@"; }
exit_code() { docker inspect -f '{{.State.ExitCode}}' "$1"; }
stopped() { is "$(docker inspect -f '{{.State.Running}}' "$1")" false; }
address() { docker inspect -f '{{.NetworkSettings.IPAddress}}' "$1"; }
# tcp DB USER PASSWORD DATABASE SQL: from another container, over the network.
tcp() {
    PGPASSWORD=$3 docker run --rm -e PGPASSWORD "${labels[@]}" "$image" \
        psql -X -At -h "$(address "$1")" -U "$2" -d "$4" -c "$5"
}
logs() { docker logs "$1" 2>&1; }

scripts_folder() {
    local dir=$work/initdb.d
    mkdir -p "$dir"
    echo "CREATE TABLE ran (n int, who text, db text); INSERT INTO ran VALUES (1, current_user, current_database());" >"$dir/10-a.sql"
    printf '%s\n' 'set -e' 'psql -X -q -c "INSERT INTO ran VALUES (2, current_user, current_database())"' >"$dir/20-b.sh"
    echo "INSERT INTO ran VALUES (3, current_user, current_database());" | gzip >"$dir/30-c.sql.gz"
    echo "not a script" >"$dir/README"
    chmod -R a+rX "$work"
}

test_life() { # one cluster's life: secrets by file, statements logged by the user's wish
    local data db started
    data=$(new_data)
    printf '%s\n' "$password" | in_volumes "$data" sh -c 'cat >/secret/adminpass'
    printf '%s\n' "$admin" | in_volumes "$data" sh -c 'cat >/secret/adminuser'
    printf '%s' "$database" | in_volumes "$data" sh -c 'cat >/secret/admindb'
    echo "boot $password" | in_volumes "$data" sh -c 'cat >/secret/pgpass; chmod 600 /secret/*'
    printf '%s\n' "log_statement = 'all'" "log_min_duration_statement = 0" "work_mem = '5MB'" "debug_print_parse = on" |
        in_volumes "$data" sh -c 'cat >/config/10-user.conf; echo "work_mem = 6MB" >/config/20-user.conf'
    db=$(database_container "$data" -v "$work/initdb.d:/docker-entrypoint-initdb.d:ro" "$image")
    check "a fresh volume is initialised and served" served "$db"
    check "the log says 'ready to accept connections' once" \
        is "$(logs "$db" | grep -c 'ready to accept connections')" 1
    check "the admin logs in over TCP, name, password and database with quotes, spaces, backslashes" \
        is "$(tcp "$db" "$admin" "$password" "$database" 'select rolsuper from pg_roles where rolname = current_user' 2>&1)" t
    check "the admin owns its database" \
        is "$(sql "$db" -c "select count(*) from pg_database d join pg_roles r on r.oid = datdba where datname like 'my%' and rolname like 'o''hara%'")" 1
    check "a wrong password is refused" fails tcp "$db" "$admin" "${password}x" "$database" 'select 1'
    check "the bootstrap role is refused over TCP" \
        contains "$(tcp "$db" postgres "boot $password" postgres 'select 1' 2>&1 || true)" 'rejects connection'
    check "root enters by the socket, from another container with the same volumes" \
        is "$(docker run --rm "${labels[@]}" --volumes-from "$data" "$image" psql -X -At -h /data/run -U postgres -c 'select current_user' 2>&1)" postgres
    check "other system users do not" \
        fails docker exec -u nobody "$db" psql -w -X -U postgres -c 'select 1'
    check "/config/*.conf wins, the last file most" is "$(sql "$db" -c 'show work_mem')" 6MB
    check "data checksums are on" is "$(sql "$db" -c 'show data_checksums')" on
    check "encoding and locale" is "$(sql "$db" -c "select pg_encoding_to_char(encoding), datcollate from pg_database where datname = 'postgres'")" 'UTF8|C.UTF-8'
    check "en_US and de_DE are there" is "$(sql "$db" -c "select count(distinct collname) from pg_collation where collname in ('en_US.utf8', 'de_DE.utf8')")" 2
    check "init scripts ran once, in order, as postgres in the admin's database" \
        is "$(sql "$db" -d "$database" -c "select string_agg(n::text || who, ',') from ran where db = current_database()")" '1postgres,2postgres,3postgres'
    if [ "${major%%.*}" -ge 10 ]; then
        check "the admin's password is stored as SCRAM" \
            is "$(sql "$db" -c "select substr(rolpassword, 1, 13) from pg_authid where rolname like 'o''hara%'")" SCRAM-SHA-256
        sql "$db" -c "set password_encryption = 'md5'; create role old login password 'x'" >/dev/null 2>&1
        check "a role with an md5 hash from an older server logs in" is "$(tcp "$db" old x postgres 'select 1' 2>&1)" 1
    fi
    check "the container becomes healthy" \
        until_true 30 eval 'is "$(docker inspect -f "{{.State.Health.Status}}" '"$db"')" healthy'

    sql "$db" -d "$database" -c 'create table kept as select 42 as n' >/dev/null
    check "the user's log_statement works" contains "$(logs "$db")" 'create table kept'
    check "SIGHUP reaches the server" eval '
        echo "work_mem = 7MB" | in_volumes "$data" sh -c "cat >/config/30-user.conf"
        docker kill -s HUP "$db" && until_true 5 eval "is \"\$(sql $db -c \"show work_mem\")\" 7MB"'
    check "a second container on the same volume is refused" eval '
        other=$(database_container "$data" "$image"); until_true 20 stopped "$other"
        is "$(exit_code "$other")" 1 && contains "$(logs "$other")" "another container"'
    check "the first is not disturbed by it" is "$(sql "$db" -h /data/run -c 'select 1')" 1

    started=$(date +%s%N)
    docker exec -d "$db" psql -X -U postgres -c 'select pg_sleep(600)'
    check "docker stop ends it" docker stop -t 30 "$db"
    check "… in less than 3 s although a session is open" [ $((($(date +%s%N) - started) / 1000000)) -lt 3000 ]
    check "… with exit code 0" is "$(exit_code "$db")" 0
    check "… and no log line is lost" contains "$(logs "$db" | tail -n 1)" 'database system is shut down'
    check "/log has the same last line" contains "$(in_volumes "$data" tail -n 1 /log/postgresql.log)" 'database system is shut down'
    check "pg_controldata says: shut down" \
        contains "$(docker run --rm "${labels[@]}" --volumes-from "$data" "$image" pg_controldata "/data/$major")" 'shut down'
    docker start "$db" >/dev/null
    check "a restart serves the same data" eval 'until_true 30 ready "$db" && is "$(sql "$db" -d "$database" -c "select n from kept")" 42'
    check "… and initialises nothing" is "$(logs "$db" | grep -c initialising)" 1
    docker kill -s KILL "$db" >/dev/null
    docker start "$db" >/dev/null
    check "after kill -9 it recovers and starts" eval 'served "$db" && is "$(sql "$db" -d "$database" -c "select n from kept")" 42'

    docker inspect "$db" >"$work/leak-inspect"
    logs "$db" >"$work/leak-logs"
    in_volumes "$data" sh -c 'cat /log/*' >"$work/leak-log-volume"
    docker exec "$db" sh -c 'for f in /proc/[0-9]*/environ /proc/[0-9]*/cmdline; do tr "\0" "\n" <$f; done' >"$work/leak-proc" 2>/dev/null
    # shellcheck disable=SC2016
    check "no password in docker inspect, docker logs, /log, argv or environment" fails grep -F -e "pa'ss" -e 'wo rd\n' -e '`id` :x' "$work"/leak-*
    check "the log volume's file is not for others" is "$(in_volumes "$data" stat -c '%a %u' /log/postgresql.log)" '640 999'
    docker rm -fv "$db" >/dev/null
}

test_environment() { # secrets by variable; another bootstrap role; the user's own access rules
    local data db
    data=$(new_data)
    db=$(database_container "$data" -e POSTGRES_USER=boss -e ADMIN_USER=ann -e ADMIN_PASS="$password" \
        -e POSTGRES_INITDB_ARGS='--locale=de_DE.UTF-8 --wal-segsize=4' "$image" -c work_mem=9MB)
    check "secrets by variable: starts" served "$db"
    check "arguments reach the server" is "$(docker exec "$db" psql -X -At -U boss -d postgres -c 'show work_mem' 2>&1)" 9MB
    check "only the bootstrap role that was asked for exists" \
        is "$(docker exec "$db" psql -X -At -U boss -d postgres -c "select string_agg(rolname, ',' order by rolname) from pg_roles where rolname !~ '^pg_'")" ann,boss
    check "POSTGRES_INITDB_ARGS win" \
        is "$(docker exec "$db" psql -X -At -U boss -d postgres -c "select datcollate from pg_database where datname = 'ann'")" de_DE.UTF-8
    check "the admin's database is named after it" is "$(tcp "$db" ann "$password" ann 'select 1' 2>&1)" 1
    # PID 1, the server and its children; not this very exec, which Docker gives the container's variables.
    docker exec "$db" bash -c '
        read -r server <"$PGDATA/postmaster.pid"
        for pid in 1 "$server" $(ps -o pid= --ppid 1 --ppid "$server"); do tr "\0" "\n" <"/proc/$pid/environ"; done
    ' >"$work/environ" 2>/dev/null || true
    check "the variables are gone from the server's environment" eval \
        'grep -q ^PGDATA= "$work/environ" && fails grep -e ADMIN_PASS -F -e "wo rd" "$work/environ"'
    docker rm -fv "$db" >/dev/null

    printf 'local all all trust\nhost all all all reject\n' | in_volumes "$data" sh -c 'cat >/config/pg_hba.conf; echo "work_mem = 8MB" >/config/a.conf'
    db=$(database_container "$data" "$image")
    check "/config/pg_hba.conf is used instead" eval 'until_true 30 ready "$db" && is "$(docker exec -u nobody "$db" psql -X -At -U boss -d postgres -c "show work_mem" 2>&1)" 8MB'
    docker rm -fv "$db" >/dev/null
    in_volumes "$data" sh -c 'rm /config/pg_hba.conf; chmod 700 /config'
    db=$(database_container "$data" "$image")
    check "an unreadable /config does not stop it, but is told" eval 'until_true 30 ready "$db" && contains "$(logs "$db")" "cannot read /config"'
    docker rm -fv "$db" >/dev/null

    data=$(new_data)
    db=$(database_container "$data" -e ADMIN_PASS=a -e ADMIN_PASS_FILE=/b "$image")
    check "a secret given twice is an error" eval 'until_true 20 stopped "$db" && contains "$(logs "$db")" "both ADMIN_PASS and ADMIN_PASS_FILE"'
    docker rm -fv "$db" >/dev/null
    db=$(database_container "$data" -e ADMIN_USER=ann "$image")
    check "an admin without a password is an error" eval 'until_true 20 stopped "$db" && contains "$(logs "$db")" "without a password"'
    docker rm -fv "$db" >/dev/null
    check "other commands are executed as they are" is "$(docker run --rm "${labels[@]}" "$image" echo 'a  b')" 'a  b'
    check "--version initialises nothing" contains "$(docker run --rm "${labels[@]}" "$image" --version)" "(PostgreSQL) $major"
}

refusal() { # refusal NAME TEXT: the container must end with an error that says TEXT
    local db=$1
    until_true 20 stopped "$db" || return 1
    fails is "$(exit_code "$db")" 0 >/dev/null || return 1
    contains "$(logs "$db")" "$2"
}

test_refusals() {
    local data db
    data=$(new_data)
    in_volumes "$data" sh -c 'mkdir -p /data/9.4 && echo 9.4 >/data/9.4/PG_VERSION'
    db=$(database_container "$data" "$image")
    check "another major's data: refused, with the way out" refusal "$db" "pglife upgrade --to $major"
    check "… naming the major that was found" contains "$(logs "$db")" 'PostgreSQL 9.4'
    check "… and nothing was made" is "$(in_volumes "$data" ls /data | tr '\n' ' ')" '9.4 run '
    docker rm -fv "$db" >/dev/null
    in_volumes "$data" sh -c "mv /data/9.4 /data/$major"
    db=$(database_container "$data" "$image")
    check "another major's data in this major's place: refused" refusal "$db" "pglife upgrade --to $major"
    docker rm -fv "$db" >/dev/null
    in_volumes "$data" sh -c "mv /data/$major/PG_VERSION /data/$major/mine"
    db=$(database_container "$data" "$image")
    check "files that are no data directory: refused" refusal "$db" 'nothing was changed'
    check "… and left alone" is "$(in_volumes "$data" cat "/data/$major/mine")" 9.4
    docker rm -fv "$db" >/dev/null
}

# Until bash has read its first lines the kernel keeps signals from it, as from every first process of a container: on a machine
# that is busy an attempt may come that early, and the next one comes a little later.
stopped_as_it_starts() {
    local begun pause
    for pause in 0 0.5 1; do
        docker start "$1" >/dev/null
        sleep $pause
        begun=$SECONDS
        docker stop -t 20 "$1" >/dev/null
        [ $((SECONDS - begun)) -ge 10 ] || return 0
    done
    return 1
}

test_interruption() {
    local data db delay
    data=$(new_data)
    printf 'x\n' | in_volumes "$data" sh -c 'cat >/secret/adminpass; echo ann >/secret/adminuser'
    for delay in 0.0 0.3 0.6 0.9 1.2; do
        db=$(database_container "$data" "$image")
        until_true 20 docker exec "$db" test -e "/data/.init-$major/PG_VERSION" || true
        sleep $delay
        docker kill -s KILL "$db" >/dev/null 2>&1 || true
        docker rm -fv "$db" >/dev/null
        # Never half: absent, or complete with the roles in it (the last steps are fast).
        if in_volumes "$data" test -e "/data/$major"; then
            check "killed $delay s into initialisation: it was complete" in_volumes "$data" test ! -e "/data/.init-$major"
        else
            ok "killed $delay s into initialisation: no data directory"
        fi
    done
    db=$(database_container "$data" "$image")
    check "after that it starts, complete" eval 'served "$db" && is "$(tcp "$db" ann x ann "select 1" 2>&1)" 1'
    check "no leftover" is "$(in_volumes "$data" ls -A /data | tr '\n' ' ')" "$major run "
    docker stop -t 20 "$db" >/dev/null
    check "docker stop in the first moments is not lost" stopped_as_it_starts "$db"
    docker rm -fv "$db" >/dev/null

    data=$(new_data)
    echo 'sleep 60' >"$work/slow.sh"
    db=$(database_container "$data" -v "$work/slow.sh:/docker-entrypoint-initdb.d/slow.sh:ro" "$image")
    until_true 30 eval 'logs "$db" | grep -q "running .*slow.sh"'
    local started=$SECONDS
    docker stop -t 20 "$db" >/dev/null
    check "docker stop during initialisation is prompt" [ $((SECONDS - started)) -lt 5 ]
    check "… and not a success" is "$(exit_code "$db")" 130
    docker rm -fv "$db" >/dev/null
    db=$(database_container "$data" -e POSTGRES_INITDB_ARGS=--nonsense "$image")
    check "a failing initdb fails the start" refusal "$db" 'next start begins anew'
    docker rm -fv "$db" >/dev/null
    echo 'select nonsense' >"$work/bad.sql"
    db=$(database_container "$data" -v "$work/bad.sql:/docker-entrypoint-initdb.d/bad.sql:ro" "$image")
    check "a failing init script fails the start" refusal "$db" 'bad.sql failed'
    check "… and leaves no data directory" in_volumes "$data" test ! -e "/data/$major"
    docker rm -fv "$db" >/dev/null
}

test_full_log() {
    local db
    db=$(docker run -d "${labels[@]}" --tmpfs /log:size=64k -v /data "$image")
    served "$db"
    sql "$db" -c "do \$\$ begin for i in 1..2000 loop raise log 'noise % %', i, repeat('x', 100); end loop; end \$\$" >/dev/null
    check "a full /log stops nothing" is "$(sql "$db" -c 'select 1')" 1
    check "… and standard error has every line" eval 'until_true 5 eval "logs $db | grep -q \"noise 2000\"" && is "$(logs "$db" | grep -c "LOG:  noise")" 2000'
    check "… and says so" contains "$(logs "$db")" 'No space left'
    docker rm -fv "$db" >/dev/null
}

test_data() {
    local data
    data=$(new_data)
    check "four volumes" is "$(docker inspect -f '{{range .Mounts}}{{.Destination}} {{end}}' "$data" | tr ' ' '\n' | sort | xargs)" '/config /data /log /secret'
    check "owners and modes of a fresh volume" \
        is "$(in_volumes "$data" stat -c '%n %a %u' /data /config /secret /log | xargs)" '/data 755 0 /config 755 0 /secret 700 0 /log 755 0'
    check "it runs nothing" contains "$(docker run --rm "${labels[@]}" "$image")" 'runs nothing'
}

test_consul() {
    local agent
    agent=$(docker run -d "${labels[@]}" "$image")
    check "the agent elects itself" until_true 20 eval 'contains "$(curl -s "http://$(address "$agent"):8500/v1/status/leader")" :8300'
    curl -s -X PUT -d works "http://$(address "$agent"):8500/v1/kv/x" >/dev/null
    check "key-value store over HTTP" is "$(curl -s "http://$(address "$agent"):8500/v1/kv/x?raw")" works
    local started=$SECONDS
    docker stop -t 20 "$agent" >/dev/null
    check "docker stop is prompt" [ $((SECONDS - started)) -lt 10 ]
}

test_chromium() {
    local driver
    driver=$(docker run -d "${labels[@]}" "$image" --port=4444 --allowed-ips=)
    driver_ready() { curl -s "http://$(address "$driver"):4444/status" | grep -q '"ready":true'; }
    check "the driver is ready" until_true 20 driver_ready
}

test_seaweedfs() {
    local server url file="$work/object"
    server=$(docker run -d "${labels[@]}" "$image")
    url=http://$(address "$server"):8333
    head -c 3000000 /dev/urandom >"$file"
    s3() { curl -sS --fail --aws-sigv4 aws:amz:us-east-1:s3 --user pglife-test:pglife-test-secret "$@"; }
    check "a bucket can be made" until_true 60 s3 -X PUT "$url/bucket"
    check "an object is stored" s3 -T "$file" -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' "$url/bucket/a/b"
    check "… and read back" eval 's3 "$url/bucket/a/b" | cmp - "$file"'
    local started=$SECONDS
    docker stop -t 20 "$server" >/dev/null
    check "docker stop is prompt" [ $((SECONDS - started)) -lt 10 ]
    docker start "$server" >/dev/null
    url=http://$(address "$server"):8333
    check "after a restart the object is still there" until_true 60 eval 's3 "$url/bucket/a/b" | cmp - "$file"'
    check "without credentials: refused" is "$(curl -s -o /dev/null -w '%{http_code}' "$url/bucket/a/b")" 403
    sed 's/pglife-test-secret/other/' "$here/seaweedfs/s3.json" >"$work/s3.json"
    docker rm -fv "$server" >/dev/null
    server=$(docker run -d "${labels[@]}" -v "$work/s3.json:/etc/seaweedfs/s3.json:ro" "$image")
    url=http://$(address "$server"):8333
    check "credentials come from a mounted file" until_true 60 \
        curl -sS --fail --aws-sigv4 aws:amz:us-east-1:s3 --user pglife-test:other -X PUT "$url/bucket"
    check "… and the others are gone" fails s3 "$url/bucket"
}

test_official() {
    local db volume=/var/lib/postgresql/data
    [ "${image##*:}" -lt 18 ] || volume=/var/lib/postgresql
    db=$(docker run -d "${labels[@]}" "$image")
    check "without a password: refused" refusal "$db" POSTGRES_PASSWORD
    echo "file's secret" >"$work/password"
    db=$(docker run -d "${labels[@]}" -v "$work/initdb.d:/docker-entrypoint-initdb.d:ro" -v "$work/password:/password:ro" \
        -e POSTGRES_PASSWORD_FILE=/password -e POSTGRES_USER=app -e POSTGRES_DB=appdb "$image")
    local query=(docker exec "$db" psql -X -At -U app -d appdb -c)
    sed -i 's/psql -X -q -c/psql -X -q -U "${PGUSER:-$POSTGRES_USER}" -d "${PGDATABASE:-$POSTGRES_DB}" -c/' "$work/initdb.d/20-b.sh"
    check "starts; local connections are trusted" until_true 60 "${query[@]}" 'select 1'
    check "the password counts from elsewhere" is "$(tcp "$db" app "file's secret" appdb 'select current_user' 2>&1)" app
    check "… and must be right" fails tcp "$db" app wrong appdb 'select 1'
    check "init scripts ran" is "$("${query[@]}" 'select count(*) from ran')" 3
    check "the data directory is an anonymous volume" \
        is "$(docker inspect -f '{{range .Mounts}}{{.Type}} {{.Destination}}{{"\n"}}{{end}}' "$db" | grep -x "volume $volume")" "volume $volume"
    check "the server is PID 1 and runs as postgres" is "$(docker exec "$db" stat -c %U /proc/1)" postgres
    check "docker stop" docker stop -t 20 "$db"
    check "… is clean" is "$(exit_code "$db")" 0
    db=$(docker run -d "${labels[@]}" -e POSTGRES_PASSWORD=x -e TEST_LOCAL_AUTH=scram-sha-256 "$image")
    check "TEST_LOCAL_AUTH: starts" until_true 60 docker exec -e PGPASSWORD=x "$db" psql -X -U postgres -c 'select 1'
    check "… and asks for the password" fails docker exec "$db" psql -w -X -U postgres -c 'select 1'
    docker rm -fv "$db" >/dev/null
}

test_pglife() {
    check "the program runs" docker run --rm "${labels[@]}" "$image" --version
    check "certificates are there" docker run --rm "${labels[@]}" --entrypoint test "$image" -s /etc/ssl/certs/ca-certificates.crt
}

test_compose() {
    local compose=(docker compose) project=$run
    docker compose version >/dev/null 2>&1 || compose=(docker-compose)
    compose+=(--project-name "$project" --file "$here/compose.yaml")
    export PGLIFE_CLUSTER=$run PGLIFE_PORT=0
    image=compose
    check "the data container alone" "${compose[@]}" up --no-start data
    echo ann | in_volumes "$run-data" sh -c 'cat >/secret/adminuser'
    echo "$password" | in_volumes "$run-data" sh -c 'cat >/secret/adminpass'
    check "up" "${compose[@]}" up -d
    check "the server answers" served "$run-db"
    sql "$run-db" -d ann -c 'create table kept as select 42 as n' >/dev/null || true
    check "labels" is "$(docker inspect -f '{{index .Config.Labels "pglife.cluster"}} {{index .Config.Labels "pglife.role"}}' "$run-db")" "$run database"
    check "the port is published" contains "$(docker port "$run-db" 5432)" 127.0.0.1
    check "down" "${compose[@]}" down
    check "up again" "${compose[@]}" up -d
    check "… with the same data" eval 'served "$run-db" && is "$(sql "$run-db" -d ann -c "select n from kept")" 42'
    "${compose[@]}" down -v >/dev/null 2>&1
}

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    mapfile -t targets < <(docker images --filter label=pglife.image --format '{{.Repository}}:{{.Tag}}' | grep '^pglife/' | sort -V)
    targets+=(compose)
fi
for target in "${targets[@]}"; do
    image=$target
    scripts_folder
    if [ "$target" = compose ]; then
        test_compose
        continue
    fi
    major=$(docker image inspect -f '{{index .Config.Labels "pglife.major"}}' "$image")
    case $(docker image inspect -f '{{index .Config.Labels "pglife.image"}}' "$image") in
    postgres)
        test_life
        test_environment
        test_refusals
        test_interruption
        test_full_log
        ;;
    data) test_data ;;
    consul) test_consul ;;
    chromium) test_chromium ;;
    seaweedfs) test_seaweedfs ;;
    test-official) test_official ;;
    pglife) test_pglife ;;
    *) not_ok "no pglife image" ;;
    esac
done
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ]

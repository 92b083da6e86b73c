# shellcheck shell=bash
# Uploads. scripts/bench sources it and says what it does.

# shellcheck source=scripts/benchmarks/common.sh
. scripts/benchmarks/common.sh
mb=${mb:-5000}
scripts/setup rust
scripts/setup images seaweedfs
have rclone || apt_install rclone
python3 -c 'import boto3' 2>/dev/null || apt_install python3-boto3
cargo build --release --locked --quiet --example s3-upload
upload=$(find target -path '*/release/examples/s3-upload' | head -n 1)
object=$folder/object
head -c "${mb}000000" /dev/zero | openssl enc -aes-256-ctr -pass pass:bench -nosalt 2>/dev/null >"$object"
key=pglife-test secret=pglife-test-secret
cat >"$folder/upload.py" <<END
import boto3, sys
s3 = boto3.client("s3", endpoint_url=sys.argv[1], aws_access_key_id="$key", aws_secret_access_key="$secret", region_name="us-east-1")
s3.upload_fileobj(sys.stdin.buffer, "bench", "object")
END
# fresh: a server with the empty bucket "bench".
fresh() {
    local tries=0
    server=$(docker run -d -v "$folder:/bench:ro" pglife/test-seaweedfs)
    url=http://$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$server"):8333
    until curl -sf -o /dev/null --aws-sigv4 aws:amz:us-east-1:s3 --user "$key:$secret" -X PUT "$url/bench"; do
        [ $((tries += 1)) -lt 120 ] || die "the S3 server does not answer"
        sleep 0.5
    done
    # The first byte makes it reserve its volumes; that is not the client's time.
    curl -sf -o /dev/null --aws-sigv4 aws:amz:us-east-1:s3 --user "$key:$secret" -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' \
        -T "$folder/upload.py" "$url/bench/first" || die "the S3 server stores nothing"
}
# client NAME COMMAND...: seconds and peak memory of a client that reads the object from stdin.
client() {
    local name=$1 from
    shift
    fresh
    cat >"$folder/bucket.json" <<END
{"bucket": "bench", "prefix": "", "endpoint": "$url", "region": "us-east-1", "path_style": true, "authorities": "", "object_lock": null,
 "credentials": {"access_key": "$key", "secret_key": "$secret", "session_token": null}}
END
    # What is measured is the way to the server, not the disk's cache.
    sync
    from=$(now)
    env -u AWS_CA_BUNDLE RCLONE_CONFIG_B_TYPE=s3 RCLONE_CONFIG_B_PROVIDER=Other RCLONE_CONFIG_B_ENDPOINT="$url" RCLONE_CONFIG_B_REGION=us-east-1 \
        RCLONE_CONFIG_B_ACCESS_KEY_ID="$key" RCLONE_CONFIG_B_SECRET_ACCESS_KEY="$secret" URL="$url" SERVER="$server" \
        time --format %M --output "$folder/memory" "$@" <"$object" >"$folder/out" 2>&1 || { cat "$folder/out" >&2; die "$name failed"; }
    seconds "$from" "$(now)" >>"$folder/$name.s"
    tail -n 1 "$folder/memory" | awk '{ print $1 * 1024 }' >>"$folder/$name.bytes"
    docker rm -fv "$server" >/dev/null
    server=
}
for ((round = 1; round <= rounds; round++)); do
    client pglife "$upload" "$folder/bucket.json" object
    # shellcheck disable=SC2016 # the inner shell knows them
    client boto3 sh -c 'exec python3 "$1" "$URL"' sh "$folder/upload.py"
    client rclone rclone --config /dev/null rcat B:bench/object
    # shellcheck disable=SC2016
    client weed sh -c 'exec docker exec "$SERVER" weed filer.copy /bench/object http://127.0.0.1:8888/buckets/bench/'
    say "round $round of $rounds: pglife $(tail -n 1 "$folder/pglife.s") s, boto3 $(tail -n 1 "$folder/boto3.s") s," \
        "rclone $(tail -n 1 "$folder/rclone.s") s, weed $(tail -n 1 "$folder/weed.s") s"
done
machine
printf ', %s, boto3 %s, SeaweedFS %s\n' "$(rclone version | head -n 1)" "$(python3 -c 'import boto3; print(boto3.__version__)')" \
    "$(docker run --rm pglife/test-seaweedfs weed version 2>/dev/null | awk 'NR == 1 { print $3 }')"
printf 'one object of %s MB; medians of %d rounds\n\n' "$mb" "$rounds"
for name in pglife boto3 rclone weed; do
    printf '%-44s %8s s  %6s MB/s' "$name" "$(median "$folder/$name.s")" "$(awk -v mb="$mb" -v s="$(median "$folder/$name.s")" 'BEGIN { printf "%.0f", mb / s }')"
    [ $name = weed ] && printf '  not S3\n' || printf '  %6s MiB\n' "$(mib "$(largest "$folder/$name.bytes")")"
done
echo
fastest=$(printf '%s\n' "$(median "$folder/boto3.s")" "$(median "$folder/rclone.s")" | sort -g | head -n 1)
goal 'pglife / the fastest other S3 client' "$(quotient "$(median "$folder/pglife.s")" "$fastest")" 1.0
goal 'peak memory' "$(mib "$(largest "$folder/pglife.bytes")")" 160 MiB

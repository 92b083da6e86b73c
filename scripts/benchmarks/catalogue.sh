# shellcheck shell=bash
# Many backups. scripts/bench sources it and says what it does.

# shellcheck source=scripts/benchmarks/common.sh
. scripts/benchmarks/common.sh
scripts/setup rust
scripts/setup binary
scripts/setup images seaweedfs
cargo build --release --locked --quiet --example fill-repository
fill=$(find target -path '*/release/examples/fill-repository' | head -n 1)
server=$(docker run -d pglife/test-seaweedfs)
endpoint="http://$(docker inspect --format '{{.NetworkSettings.IPAddress}}' "$server"):8333"
deadline=$((SECONDS + 60))
until curl -sf -o /dev/null --aws-sigv4 aws:amz:us-east-1:s3 --user pglife-test:pglife-test-secret -X PUT "$endpoint/bench"; do
    [ $SECONDS -lt $deadline ] || die "the S3 server does not answer"
    sleep 0.3
done
mkdir "$folder/policies"
install -m 0600 /dev/null "$folder/s3"
printf '[default]\naws_access_key_id = pglife-test\naws_secret_access_key = pglife-test-secret\n' >"$folder/s3"
cat >"$folder/pglife.toml" <<END
state_dir = "state"
[repos.near]
type = "local"
path = "repo"
[repos.far]
type = "s3"
bucket = "bench"
endpoint = "$endpoint"
region = "us-east-1"
credentials_file = "s3"
END
# took COMMAND...: its seconds, on stdout.
took() {
    local from to
    from=$(now)
    target/pglife --config "$folder/pglife.toml" --quiet "$@" >"$folder/answer" || [ $? = 3 ]
    to=$(now)
    seconds "$from" "$to"
}
for repo in near far; do
    printf '[cluster]\nmajor = "17"\n[backup.dump]\nrepos = ["%s"]\n[retention]\nlast = 3\ndaily = 7\nweekly = 4\nmonthly = 12\n' \
        "$repo" >"$folder/policies/bench-$$-$repo.toml"
    took repo init "$repo" >/dev/null
    say "making $sets sets in the repository \"$repo\""
    "$fill" "$folder/pglife.toml" "bench-$$-$repo" "$sets"
done
machine
printf '\n%s sets of seven objects\n\n' "$sets"
for repo in near far; do
    limit=2
    [ $repo = near ] || { limit=5; printf '%-44s %8s s\n' "far: backups list, nothing remembered" "$(took backups list "bench-$$-far")"; }
    goal "$repo: backups list" "$(took backups list "bench-$$-$repo")" $limit s
    [ "$(grep -c "^bench-" "$folder/answer")" = "$sets" ] || die "the list does not have $sets sets"
    goal "$repo: status" "$(took status "bench-$$-$repo")" $limit s
    goal "$repo: prune, the plan" "$(took prune "bench-$$-$repo")" $limit s
done

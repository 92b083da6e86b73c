# shellcheck shell=bash
# Base images: a tag that exists is used, else it is pulled, else the same tag is built from the
# distribution's own signed packages. Sourced by scripts/setup after lib.sh.

KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
IMAGE_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# ensure_bases TAG...: all of them, two builds at a time.
ensure_bases() {
    local tag missing=() pids=() pid failed=0
    for tag in $(printf '%s\n' "$@" | sort -u); do
        [ -n "$(image_id "$tag")" ] || missing+=("$tag")
    done
    [ ${#missing[@]} -gt 0 ] || return 0

    # The first one asks the registry; its answer holds for this run.
    local answered=no
    if pull "${missing[0]}"; then
        answered=yes
        missing=("${missing[@]:1}")
    fi
    if [ $answered = yes ]; then
        for tag in "${missing[@]}"; do
            pull "$tag" || die "cannot pull $tag although the registry answered before; run this again"
        done
        return 0
    fi

    say "no registry answers: building ${missing[*]} from packages"
    for tag in "${missing[@]}"; do
        case $tag in
        busybox:*) have_busybox || apt_install busybox-static ;;
        *)
            have mmdebstrap || apt_install mmdebstrap
            [ -e $KEYRING ] || apt_install debian-archive-keyring
            ;;
        esac
    done
    for tag in "${missing[@]}"; do
        while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n || true; done
        build_base "$tag" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
    [ $failed = 0 ] || die "a base image could not be built, see above"
}

# pull TAG: gives up after PGLIFE_CONNECT_TIMEOUT seconds when nothing at all comes back.
pull() {
    local log started=$SECONDS
    log=$(mktemp)
    docker pull "$1" >"$log" 2>&1 &
    local pid=$!
    while kill -0 $pid 2>/dev/null; do
        # "Pulling from" is printed once the registry has answered; then take the time it takes.
        if ! grep -q 'Pulling from' "$log" && [ $((SECONDS - started)) -ge "${PGLIFE_CONNECT_TIMEOUT:-5}" ]; then
            kill $pid 2>/dev/null || true
            break
        fi
        sleep 0.1
    done
    if wait $pid; then
        rm -f "$log"
        say "$1: pulled"
        return 0
    fi
    rm -f "$log"
    return 1
}

build_base() {
    local tag=$1 suite log started=$SECONDS
    log=$(mktemp)
    suite=${tag#debian:}
    suite=${suite%-slim}
    case $tag in
    busybox:latest) import_busybox "$tag" >"$log" 2>&1 ;;
    debian:*-slim) import_debian "$suite" "$tag" >"$log" 2>&1 ;;
    *) echo "no recipe for $tag" >"$log"; false ;;
    esac || {
        tail -n 20 "$log" >&2
        if grep -qE 'NO_PUBKEY|not signed|not available' "$log"; then
            warn "$tag: if a signature could not be checked, upgrade debian-archive-keyring to a release that knows $suite"
        fi
        rm -f "$log"
        return 1
    }
    rm -f "$log"
    say "$tag: built from packages in $((SECONDS - started)) s"
}

have_busybox() { busybox_path >/dev/null; }

# The dynamic busybox of the same name would not run in an empty image.
busybox_path() {
    local path
    for path in /bin/busybox /usr/bin/busybox; do
        if [ -x $path ] && dpkg -S $path 2>/dev/null | grep -q '^busybox-static'; then
            echo $path
            return 0
        fi
    done
    return 1
}

import_busybox() {
    local root path
    root=$(mktemp -d)
    path=$(busybox_path)
    mkdir -p "$root"/{bin,dev,etc,proc,root,run,sys,tmp,usr,var}
    chmod 0755 "$root"
    chmod 1777 "$root/tmp"
    chmod 0700 "$root/root"
    install -m 0755 "$path" "$root/bin/busybox"
    "$path" --list | while read -r applet; do
        [ -e "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
    printf 'root:x:0:\n' >"$root/etc/group"
    tar -C "$root" --owner=0 --group=0 --numeric-owner -c . |
        docker import -c 'CMD ["sh"]' -c "ENV PATH=$IMAGE_PATH" -c "LABEL pglife.base=busybox-static" - "$1"
    rm -rf "$root"
}

# The first Debian mirror of this machine's own apt configuration; empty means mmdebstrap's default.
host_uris() {
    local file
    {
        for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
            [ -r "$file" ] && sed -nE 's/^deb +(\[[^]]*\] +)?([^ ]+) .*/\2/p' "$file"
        done
        for file in /etc/apt/sources.list.d/*.sources; do
            [ -r "$file" ] && sed -nE 's/^URIs: *([^ ]+).*/\1/p' "$file"
        done
    } | sed 's:/*$::' | sort -u
}
debian_mirror() { host_uris | grep -E '/debian$' | head -n 1 || true; }
security_mirror() { host_uris | grep -E '/debian-security$' | head -n 1 || true; }

import_debian() {
    local suite=$1 tag=$2 mirror security tar sources=() hooks=/usr/share/mmdebstrap/hooks merge
    # /bin is a link to /usr/bin, as in the published images (without this, bookworm would install usrmerge and perl).
    case $suite in
    bullseye) merge=--setup-hook=$hooks/merged-usr/setup00.sh ;;
    *) merge=--hook-dir=$hooks/maybe-merged-usr ;;
    esac
    mirror=$(debian_mirror)
    security=$(security_mirror)
    # Without both, mmdebstrap's own defaults (which include the security suite) are right.
    if [ -n "$mirror" ] && [ -n "$security" ]; then
        sources+=("deb $mirror $suite main" "deb $mirror $suite-updates main")
        # A suite that is not released yet gets its security fixes by the suite itself.
        case $suite in
        bullseye | bookworm | trixie) sources+=("deb $security $suite-security main") ;;
        esac
    fi
    # The path excludes stay in the image, so that what is installed on top is slim as well.
    # Valid-Until is a promise about fresh mirrors that snapshots and proxies of "forky" cannot keep;
    # the signatures are checked all the same.
    tar=$(mktemp)
    # shellcheck disable=SC2016 # the hooks' $1 is the new root
    mmdebstrap --quiet --format=tar --mode=root --variant=minbase --components=main --keyring="$KEYRING" \
        "$merge" \
        --aptopt='APT::Install-Recommends "false"' \
        --aptopt='APT::Install-Suggests "false"' \
        --aptopt='Acquire::Languages "none"' \
        --aptopt='Acquire::Check-Valid-Until "false"' \
        --dpkgopt='force-unsafe-io' \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --dpkgopt='path-exclude=/usr/share/groff/*' \
        --dpkgopt='path-exclude=/usr/share/info/*' \
        --dpkgopt='path-exclude=/usr/share/linda/*' \
        --dpkgopt='path-exclude=/usr/share/lintian/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --customize-hook='rm -f "$1/etc/resolv.conf" "$1/etc/hostname"' \
        --customize-hook='rm -rf "$1"/var/cache/debconf/*-old "$1"/var/lib/dpkg/*-old "$1"/var/log/*.log "$1"/var/log/apt' \
        "$suite" "$tar" ${sources[@]+"${sources[@]}"} || { rm -f "$tar"; return 1; }
    # Imported only when it is complete: a pipe would tag the stump of a failed run.
    docker import -c 'CMD ["bash"]' -c "ENV PATH=$IMAGE_PATH" -c "LABEL pglife.base=mmdebstrap" "$tar" "$tag" ||
        { rm -f "$tar"; return 1; }
    rm -f "$tar"
}

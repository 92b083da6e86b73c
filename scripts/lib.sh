# shellcheck shell=bash
# Shared by the scripts in this folder; source it, do not run it.

say()  { printf '%s\n' "setup: $*"; }
warn() { printf '%s\n' "setup: warning: $*" >&2; }
die()  { printf '%s\n' "setup: error: $*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

is_root() { [ "$(id -u)" = 0 ]; }

# apt_install PACKAGE...: installs what is missing, through the machine's own apt configuration.
apt_install() {
    have apt-get || die "$* missing and this is not a Debian or Ubuntu machine: install it by hand and run this again"
    is_root || die "$* missing: run 'sudo apt-get install $*' and run this again"
    say "apt: installing $*"
    if ! apt_try "$@"; then
        # The package lists may be absent or too old for the mirror.
        apt-get update -qq || die "apt-get update failed; is the Debian mirror reachable?"
        apt_try "$@" || die "apt could not install: $*"
    fi
}

apt_try() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1
}

image_id() { docker image inspect --format '{{.Id}}' "$1" 2>/dev/null; }

image_label() {
    docker image inspect --format "{{with .Config.Labels}}{{index . \"$2\"}}{{end}}" "$1" 2>/dev/null
}

# digest_of FILE-OR-FOLDER...: one SHA-256 over names, modes and bytes, independent of where the checkout is.
digest_of() {
    find "$@" -type f -printf '%m %p\0' | sort -z | while IFS= read -r -d '' entry; do
        printf '%s %s\n' "$entry" "$(sha256sum <"${entry#* }")"
    done | sha256sum | cut -d' ' -f1
}

# shellcheck shell=bash
# What the suites share: tools, mounts and cleaning up. Sourced, not run.
#
#   BUCKETFS        the program under test  [default: target/debug/bucketfs]
#   SUITE_TOOLS     where tools are installed and kept  [default: the user's cache directory]

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bucketfs=${BUCKETFS:-$root/target/debug/bucketfs}
tools=${SUITE_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/bucketfs/suites}
work=$(mktemp -d "${TMPDIR:-/tmp}/bucketfs-suite.XXXXXX")
chmod 755 "$work"
export BUCKETFS_RUNTIME_DIR=$work/run
mounted=
export fresh=

die() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

# tool NAME VERSION: installs a crate's program unless that version is there.
tool() {
    local name=$1 version=$2
    if [ ! -x "$tools/$name-$version/bin/$name" ]; then
        echo "installing $name $version" >&2
        cargo install --quiet --locked "$name" --version "$version" \
            --root "$tools/$name-$version" >&2 || die "cannot install $name $version"
    fi
    PATH=$tools/$name-$version/bin:$PATH
}

# with_s3 COMMAND...: one of what the other scripts know of the server; they have functions of the same names.
with_s3() (
    # shellcheck source=scripts/lib.sh
    source "$root/scripts/lib.sh"
    "$@"
)

# attach URL [OPTION...]: mounts on $work/mnt. The URL `s3:` is a fresh bucket on the server of S3_ENDPOINT; its own URL
# is in $fresh then.
attach() {
    local url=$1 reach
    shift
    if [ "$url" = s3: ]; then
        url=s3://bucketfs-suite-$$
        with_s3 make_bucket "${url#s3://}" || die "cannot make a bucket at ${S3_ENDPOINT:-(S3_ENDPOINT is not set)}"
        fresh=$url
    fi
    if [[ $url = s3://* ]]; then
        mapfile -t reach < <(with_s3 s3_arguments)
        set -- "${reach[@]}" "$@"
    fi
    [ -x "$bucketfs" ] || die "no program at $bucketfs: run cargo build, or set BUCKETFS"
    mkdir -p "$work/mnt"
    timeout 60 "$bucketfs" mount "$url" "$work/mnt" --staging-dir "$work/staging" \
        --state-dir "$work/state" --log-file "$work/log" "$@" || die "cannot mount $url"
    mounted=$work/mnt
}

# detach: unmounts, whatever holds it.
detach() {
    [ -n "$mounted" ] || return 0
    timeout 60 "$bucketfs" umount "$mounted" 2>/dev/null ||
        timeout 10 umount -l "$mounted" 2>/dev/null ||
        timeout 10 fusermount3 -uz "$mounted" 2>/dev/null
    mounted=
}

finish() {
    local status=$?
    trap - EXIT
    trap '' INT TERM
    detach
    if [ "$status" = 0 ]; then
        rm -rf --one-file-system "$work"
    else
        echo "logs are in $work" >&2
    fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

# shellcheck shell=bash disable=SC2154
# sourced by every NN-*.sh: $1 = directory on the file system under test. Optional env REMOUNT_CMD: a command that
# unmounts and mounts it again (so that what is checked is what the store kept, not the cache).
set -eu
[ $# -ge 1 ] && [ -d "$1" ] || { echo "usage: $0 MOUNTDIR" >&2; exit 2; }
N=$(basename "$0" .sh); D=$1/lt-$N.$$; W=$(mktemp -d "${TMPDIR:-/var/tmp}/lt-$N.XXXXXX"); BGPIDS=
trap 'rc=$?; trap - EXIT; set +e; cd /; for p in $BGPIDS; do kill $p 2>/dev/null; done; rm -rf "$D" 2>/dev/null; rm -rf "$W"; exit $rc' EXIT
mkdir "$D"
die() { echo "FAIL $N: $*" >&2; exit 1; }
remount() { if [ -n "${REMOUNT_CMD:-}" ]; then cd /; sh -c "$REMOUNT_CMD" || die "remount failed"; fi; }
mktree() { # a source tree: nested dirs, empty file/dir, modes, binary, sizes around block edges; "mktree DIR links" adds symlinks
 mkdir -p "$1"/a/b/c "$1"/empty "$1"/src/lib; : > "$1"/zero; echo hello > "$1"/a/hello.txt; chmod 640 "$1"/a/hello.txt
 printf '#!/bin/sh\necho run\n' > "$1"/a/b/run.sh; chmod 755 "$1"/a/b/run.sh
 for s in 1 511 512 4095 4096 4097 65535 65536 131072 131073 1048577; do head -c $s /dev/urandom > "$1"/a/b/c/f$s; done
 for i in $(seq 1 60); do echo "int f$i(void){return $i;}" > "$1"/src/lib/f$i.c; done; head -c 5000000 /dev/urandom > "$1"/src/big.bin
 [ "${2:-}" != links ] || { ln -s a/hello.txt "$1"/link; ln -s ../nowhere "$1"/a/dangling; }; touch -d '2001-02-03 04:05:06' "$1"/a/hello.txt; touch -d '1999-12-31 12:00:00' "$1"/a/b/c/f512; }

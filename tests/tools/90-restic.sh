#!/bin/bash
# restic: backup into the mount, verified and restored through another (LONG)
. "$(dirname "$0")/_lib.sh"
export RESTIC_PASSWORD=secret RESTIC_CACHE_DIR=$W/cache
mkdir -p "$W/t/a"
for i in $(seq 100); do head -c $((i * 1000)) /dev/urandom >"$W/t/a/f$i"; done
head -c 5000000 /dev/urandom >"$W/t/big"
restic -q -r "$D/repo" init
restic -q -r "$D/repo" backup "$W/t"
head -c 2000 /dev/urandom >"$W/t/a/f7"
rm "$W/t/a/f8"
restic -q -r "$D/repo" backup "$W/t"
restic -q -r "$D/repo" check --read-data || die "check"
restic -q -r "$D/repo" forget --keep-last 1 --prune
settle
restic -q -r "$O/repo" --no-lock check --read-data || die "check in the other mount"
restic -q -r "$O/repo" --no-lock restore latest --target "$D/restored"
same "$W/t" "$D/restored$W/t"
echo "ok $N"

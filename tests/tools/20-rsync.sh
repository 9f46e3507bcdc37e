#!/bin/bash
# rsync -a twice: the second run changes nothing; --inplace; --delete (LONG)
. "$(dirname "$0")/_lib.sh"
mkdir -p "$W/t/a/b" "$W/t/empty"
for i in $(seq 100); do head -c $((i * 37)) /dev/urandom >"$W/t/a/f$i"; done
head -c 3000000 /dev/urandom >"$W/t/a/b/big"
ln -s ../a/f1 "$W/t/a/link"
chmod 640 "$W/t/a/f2"
touch -d '2001-02-03 04:05:06' "$W/t/a/f3" "$W/t/a/b"
rsync -a "$W/t/" "$D/t/"
same "$W/t" "$D/t"
# What the first run leaves to be written behind it, the index of attributes, is written.
sleep 12
before=$(sent)
moved=$(rsync -ai "$W/t/" "$D/t/")
[ -z "$moved" ] || die "the second run changes: $moved"
[ "$(sent)" = "$before" ] || die "the second run sent $(($(sent) - before)) requests"
dd if=/dev/urandom of="$W/t/a/b/big" bs=1000 seek=1500 count=1 conv=notrunc status=none
rsync -a --inplace --no-whole-file "$W/t/" "$D/t/"
rm "$W/t/a/f9"
rsync -a --delete "$W/t/" "$D/t/"
same "$W/t" "$D/t"
settle
same "$W/t" "$O/t"
moved=$(rsync -acni "$W/t/" "$O/t/" | grep -v '^\.d..t' || true)
[ -z "$moved" ] || die "the other mount differs: $moved"
echo "ok $N"

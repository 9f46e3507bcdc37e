#!/bin/bash
# tar -xpf: content, modes, times and links come back
. "$(dirname "$0")/_lib.sh"
mkdir -p "$W/t/src/lib" "$W/t/empty"
for i in $(seq 150); do
  echo "int f$i(void) { return $i; }" >"$W/t/src/lib/f$i.c"
  chmod "$((600 + i % 5 * 11))" "$W/t/src/lib/f$i.c"
  touch -d "@$((1000000000 + i * 7919))" "$W/t/src/lib/f$i.c"
done
printf '#!/bin/sh\necho run\n' >"$W/t/run"
chmod 4755 "$W/t/run"
: >"$W/t/zero"
ln -s src/lib/f1.c "$W/t/link"
ln -s nowhere "$W/t/dangling"
tar -C "$W" -cf "$W/t.tar" t
tar -C "$D" -xpf "$W/t.tar"
same "$W/t" "$D/t"
tar -C "$D" --compare -f "$W/t.tar" || die "tar --compare"
settle
same "$W/t" "$O/t"
tar -C "$O" -cf "$W/again.tar" t
mkdir "$W/again"
tar -C "$W/again" -xpf "$W/again.tar"
same "$W/t" "$W/again/t"
echo "ok $N"

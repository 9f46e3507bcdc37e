#!/bin/bash
# unzip, zip, 7z, dpkg-deb
. "$(dirname "$0")/_lib.sh"
mkdir -p "$W/t/d/e"
for i in $(seq 40); do head -c $((i * 100)) /dev/urandom >"$W/t/d/f$i"; done
chmod 750 "$W/t/d/f3"
ln -s f1 "$W/t/d/link"
touch -d '2001-02-03 04:05:06' "$W/t/d/f4"
(cd "$W" && zip -qry t.zip t)
unzip -q "$W/t.zip" -d "$D/unzipped"
same "$W/t" "$D/unzipped/t"
(cd "$D/unzipped" && zip -qry ../made.zip t && zip -q ../made.zip -d t/d/f1)
unzip -tq "$D/made.zip" >/dev/null || die "the archive that zip made"
(cd "$W" && 7z a -bd "$D/made.7z" t >/dev/null) || die "7z a"
7z u -bd "$D/made.7z" "$W/t.zip" >/dev/null || die "7z u"
settle
7z t -bd "$O/made.7z" >/dev/null || die "7z t in the other mount"
7z x -bd -o"$D/un7" "$O/made.7z" >/dev/null || die "7z x"
diff -r --no-dereference "$W/t" "$D/un7/t" || die "7z x has other content"
mkdir -p "$W/deb/DEBIAN" "$W/deb/usr/share/thing" "$W/deb/usr/bin"
printf 'Package: thing\nVersion: 1\nArchitecture: all\nMaintainer: t <t@example.org>\nDescription: t\n' >"$W/deb/DEBIAN/control"
cp -r "$W/t/d/." "$W/deb/usr/share/thing"
printf '#!/bin/sh\n' >"$W/deb/usr/bin/thing"
chmod 755 "$W/deb/usr/bin/thing" "$W/deb/DEBIAN"
dpkg-deb --root-owner-group -b "$W/deb" "$W/thing.deb" >/dev/null
dpkg-deb -x "$W/thing.deb" "$D/deb" || die "dpkg-deb -x"
dpkg-deb -x "$W/thing.deb" "$W/plain"
settle
same "$W/plain" "$D/deb"
same "$W/plain" "$O/deb"
unzip -tq "$O/made.zip" >/dev/null || die "the archive in the other mount"
echo "ok $N"

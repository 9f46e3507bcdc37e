#!/bin/bash
# df, df -i, stat -f give sane numbers (nonzero free space, bsize a power of two, namelen 255)
. "$(dirname "$0")/_lib.sh"
# shellcheck disable=SC2046 # four words
set -- $(stat -f -c '%S %b %a %l' "$D"); [ "$1" -ge 512 ] && [ $(( $1 & ($1-1) )) = 0 ] || die "bsize $1"; [ "$2" -gt 0 ] && [ "$3" -gt 0 ] || die "blocks $2 avail $3"; [ "$4" -ge 255 ] || die "namelen $4"; [ "$(df -Pk "$D" | awk 'NR==2{print ($4>1000000)}')" = 1 ] || die "df avail"; df -i "$D" >/dev/null || die "df -i"; [ "$(stat -c %o "$D")" -ge 512 ] || die blksize
echo "ok $N"

#!/bin/bash
# nano, with a backup
. "$(dirname "$0")/_lib.sh"
seed ada
# It wants a terminal: replace all, save, leave.
TERM=xterm script -qec "nano -I -B $D/ada.json" /dev/null >/dev/null 2>&1 < <(
  sleep 0.6; printf '\034'; sleep 0.2; printf '1816\r'; sleep 0.2; printf '1815\r'; sleep 0.2; printf 'A'; sleep 0.2; printf '\017'; sleep 0.2; printf '\r'; sleep 0.4; printf '\030'; sleep 0.3
) || true
edited ada 1816 1815 nano
grep -q '"1816"' "$D/ada.json~" || die "no backup"
is "$(theirs names)" ada "names in the store"
ok

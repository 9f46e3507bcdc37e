#!/bin/bash
# vim with swap and backup files, nano, sed -i, saving by rename
. "$(dirname "$0")/_lib.sh"
for i in $(seq 50); do echo "line $i"; done >"$D/text"
chmod 640 "$D/text"
vim -Nes -u NONE -c 'set swapfile backup writebackup' -c '%s/line 7$/by vim/' -c wq "$D/text" || die vim
grep -qx 'by vim' "$D/text" || die "vim wrote nothing"
grep -qx 'line 7' "$D/text~" || die "no backup"
vim -Nes -u NONE -c 'set swapfile nobackup backupcopy=yes' -c '%s/line 8$/in place/' -c wq "$D/text" || die "vim in place"
sed -i.bak 's/line 9$/by sed/' "$D/text"
grep -qx 'line 9' "$D/text.bak" || die "no backup of sed"
# nano wants a terminal: ^\ would replace; append at the end, save, leave.
TERM=xterm script -qec "nano -I -L $D/text" /dev/null >/dev/null 2>&1 < <(
  sleep 1; printf '\033/'; sleep 0.3; printf 'by nano\r'; sleep 0.3; printf '\017'; sleep 0.3; printf '\r'; sleep 0.5; printf '\030'; sleep 0.5
) || true
grep -q 'by nano' "$D/text" || die "nano wrote nothing"
cp -p "$D/text" "$D/text.new"
echo 'by rename' >>"$D/text.new"
mv "$D/text" "$D/text.old"
mv "$D/text.new" "$D/text"
[ "$(stat -c %a "$D/text")" = 640 ] || die "the mode is $(stat -c %a "$D/text")"
left=$(find "$D" -name '.*.sw?' -o -name '*.conflict-*')
[ -z "$left" ] || die "left behind: $left"
settle
for word in 'by vim' 'in place' 'by sed' 'by nano' 'by rename'; do
  grep -qx "$word" "$O/text" || die "the other mount lacks '$word': $(cat "$O/text")"
done
same "$D" "$O"
echo "ok $N"

#!/bin/bash
# vim with its defaults, with a backup by copy and by rename; the swap file is seen here alone
. "$(dirname "$0")/_lib.sh"
seed ada
now=1816
for how in '' 'backup backupcopy=yes' 'backup backupcopy=no'; do
  next=$((now - 1))
  vim -Nes -u NONE -c "set swapfile directory=. backupdir=. $how" -c "%s/$now/$next/" -c "silent !ls -A $D >$W/listed" -c wq "$D/ada.json" || die "vim $how"
  grep -qx '.ada.json.swp' "$W/listed" || die "no swap file: $(cat "$W/listed")"
  edited ada "$now" "$next" "vim $how"
  grep -q "\"$next\"" "$O/ada.json" || die "the other mount reads $(cat "$O/ada.json")"
  now=$next
done
grep -q '"1814"' "$D/ada.json~" || die "the backup is $(cat "$D/ada.json~")"
is "$(theirs names)" ada "names in the store"
rm "$D/ada.json~"
# A new document.
vim -Nes -u NONE -c 'set swapfile directory=.' -c 'normal i{"name": "Ben"}' -c wq "$D/ben.json" || die "vim of a new file"
is "$(theirs get ben)" '{"name":"Ben"}' "the new document"
ok

#!/bin/bash
# sed -i, with a backup, and of many files at once; ed
. "$(dirname "$0")/_lib.sh"
for name in ada ben cyd; do seed "$name"; done
sed -i s/1816/1815/ "$D/ada.json"
edited ada 1816 1815 'sed -i'
sed -i~ s/1815/1814/ "$D/ada.json"
edited ada 1815 1814 'sed -i~'
grep -q '"1815"' "$D/ada.json~" || die "no backup"
sed -i s/181[0-9]/1777/ "$D"/*.json
edited ada 1814 1777 'sed -i of many'
edited ben 1816 1777 'sed -i of many'
edited cyd 1816 1777 'sed -i of many'
printf '%s\n' ',s/1777/1778/' w q | ed -s "$D/ben.json" || die ed
edited ben 1777 1778 ed
ok

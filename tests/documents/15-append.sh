#!/bin/bash
# >>: white space behind a document changes nothing, another document behind it is refused and kept; lines of two mounts
# behind a text of Redis are all there
. "$(dirname "$0")/_lib.sh"
seed ada
echo >>"$D/ada.json"
is "$(theirs exact ada)" "$(cat "$W/was.ada")" "the document after >> of a line"
before=$(cat "$D/ada.json")
echo '{"name": "Ben"}' >>"$D/ada.json"
is "$(theirs exact ada)" "$(cat "$W/was.ada")" "the document after >> of another"
kept "$before
{\"name\": \"Ben\"}"
"$BUCKETFS" why "$D/ada.json" | grep -q 'trailing characters at line' || die "why: $("$BUCKETFS" why "$D/ada.json")"
if [ "$KIND" = redis ]; then
  for i in $(seq 20); do echo "here $i" >>"$D/log"; done &
  for i in $(seq 20); do echo "there $i" >>"$O/log"; done
  wait
  redis-cli -u "${URL%\?*}" --json append "$N:log" "last
" >/dev/null
  redis-cli -u "${URL%\?*}" get "$N:log" >"$W/log"
  is "$(grep -c '^here ' "$W/log") $(grep -c '^there ' "$W/log") $(grep -cx last "$W/log")" "20 20 1" "lines"
  eventually "the line of another program" grep -qx last "$O/log"
fi
ok 1

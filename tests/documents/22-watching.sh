#!/bin/bash
# what another program changes is seen by stat, by a loop that waits for a file, and by tail -f
. "$(dirname "$0")/_lib.sh"
made ada '{"name":"Ada"}'
size=$(stat -c %s "$D/ada.json") time=$(stat -c %Y.%y "$D/ada.json")
[ ! -e "$D/new.json" ] || die "it is there already"
theirs set ada name "a longer name"
theirs put new '{"name":"new"}'
eventually "another size" sh -c "[ \$(stat -c %s $D/ada.json) = $((size + 10)) ]"
[ "$(stat -c %Y.%y "$D/ada.json")" != "$time" ] || die "the time is the same"
eventually "the new file" test -e "$D/new.json"
theirs remove new
eventually "the removal" test ! -e "$D/new.json"
if [ "$KIND" = redis ]; then
  redis-cli -u "${URL%\?*}" set "$N:log" 'first
' >/dev/null
  eventually "the log" test -e "$D/log"
  tail ---disable-inotify -s 0.1 -n +1 -F "$D/log" >"$W/followed" &
  tail=$!
  redis-cli -u "${URL%\?*}" append "$N:log" 'second
' >/dev/null
  eventually "tail tells the second line" grep -qx second "$W/followed"
  kill "$tail"
  is "$(sort -u "$W/followed" | tr '\n' ' ')" 'first second ' "what tail has told"
fi
ok

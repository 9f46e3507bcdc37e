#!/bin/bash
# rm -r of a collection removes its documents, and rm of one that another program has changed removes that
. "$(dirname "$0")/_lib.sh"
fill 60
made ada '{"name":"Ada"}'
cat "$D/ada.json" >/dev/null
theirs set ada name Ben
rm "$D/ada.json" || die rm
is "$(theirs get ada)" none "the removed document"
if rm "$D/ada.json" 2>/dev/null; then die "removed twice"; fi
rm -r "$D" 2>"$W/said" || [ "$KIND" != redis ] || die "rm -r: $(cat "$W/said")"
is "$(theirs names)" "" "what is left"
if [ "$KIND" = redis ]; then
  [ ! -e "$D" ] || die "the directory is there"
else
  # The collection stays: others may be writing to it.
  grep -q 'Permission denied' "$W/said" || die "rm -r says $(cat "$W/said")"
  "$BUCKETFS" why "$D" | grep -q 'is not removed from here' || die "why: $("$BUCKETFS" why "$D")"
fi
ok

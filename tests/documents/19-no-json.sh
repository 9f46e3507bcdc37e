#!/bin/bash
# what is no JSON is EINVAL, `bucketfs why` tells line and column, and the text is kept
. "$(dirname "$0")/_lib.sh"
seed ada
broken='{"born": "1815",
  name: "Ada"}'
is "$(close_of "$D/ada.json" "$broken")" EINVAL "close"
"$BUCKETFS" why "$D/ada.json" | grep -q 'line 2 column 3' || die "why: $("$BUCKETFS" why "$D/ada.json")"
kept "$broken"
is "$(theirs exact ada)" "$(cat "$W/was.ada")" "the document"
is "$(close_of "$D/new.json" 'no document')" EINVAL "close of a new file"
kept 'no document'
is "$(theirs get new)" none "the new document"
# sed can be told by a rename: the old document stays.
if sed -i 's/"born"/born/' "$D/ada.json" 2>"$W/said"; then die "sed -i made what is no document"; fi
is "$(theirs exact ada)" "$(cat "$W/was.ada")" "the document after sed"
ok 2

#!/bin/bash
# mv of a document: in Redis it is one step and keeps everything; elsewhere the key is in the document, and a text that has
# another key is refused, with nothing lost
. "$(dirname "$0")/_lib.sh"
seed ada
before=$(cat "$D/ada.json")
if [ "$KIND" = redis ]; then
  mv "$D/ada.json" "$D/ben.json"
  is "$(theirs names)" ben "names"
  is "$(theirs exact ben)" "$(cat "$W/was.ada")" "the moved document"
  seed ada
  mv -f "$D/ada.json" "$D/ben.json"
  is "$(theirs names)" ben "names after mv over another"
  ok
  exit
fi
if mv "$D/ada.json" "$D/ben.json" 2>"$W/said"; then die "mv gave a document another key"; fi
"$BUCKETFS" why "$D/ben.json" >"$W/why" || die "why: $(cat "$W/why")"
grep -q 'belongs into "ada.json"' "$W/why" || die "why says $(cat "$W/why")"
is "$(theirs names)" ada "names"
is "$(theirs exact ada)" "$(cat "$W/was.ada")" "the document"
is "$(cat "$D/ada.json")" "$before" "the text"
# Without its key it can be copied.
jq 'del(._id, .id)' "$D/ada.json" >"$D/ben.json"
is "$(theirs get ben | jq -r .born)" 1816 "the copy"
# From elsewhere, and over another.
echo '{"name": "Cyd"}' >"$W/cyd.json"
mv "$W/cyd.json" "$D/cyd.json" || die "mv into the store"
is "$(theirs get cyd)" '{"name":"Cyd"}' "what was moved in"
mv "$D/cyd.json" "$W/out.json" || die "mv out of the store"
is "$(theirs get cyd)" none "what was moved out"
grep -q Cyd "$W/out.json" || die "moved out is $(cat "$W/out.json")"
ok

#!/bin/bash
# cp -r from one store to another and back, both ways seen by their clients
. "$(dirname "$0")/_lib.sh"
for name in ada ben 'c d' 'é'; do made "$name" "{\"name\":\"$name\",\"text\":\"a \\\"quoted\\\" line\\nand another\"}"; done
theirs names >"$W/names"
cp -r "$D" "${X%/*}/" || die "cp -r there"
is "$(elsewhere names)" "$(cat "$W/names")" "names in the other store"
for name in ada ben 'c d' 'é'; do
  is "$(elsewhere get "$name" | jq -cS 'del(._id, .id)')" "$(theirs get "$name")" "$name in the other store"
done
sed -i 's/"name": "ada"/"name": "Ada"/' "$X/ada.json"
theirs remove ben
settle
rm -f "$D"/*
cp -r "$X" "$M/" || die "cp -r back"
is "$(theirs names)" "$(cat "$W/names")" "names after the way back"
for name in ada ben 'c d' 'é'; do
  is "$(theirs get "$name" | jq -cS 'del(._id, .id)')" "$(elsewhere get "$name" | jq -cS 'del(._id, .id)')" "$name after the way back"
done
is "$(theirs get ada | jq -r .name)" Ada "the change on the way"
ok

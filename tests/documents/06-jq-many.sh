#!/bin/bash
# jq over 200 documents, and a change of each
. "$(dirname "$0")/_lib.sh"
fill 200
is "$(jq -s 'map(.n | tonumber) | add' "$D"/*.json)" 20100 "the sum"
for file in "$D"/d*7.json; do
  text=$(jq '.n = "0"' "$file") && echo "$text" >"$file"
done
is "$(theirs sum)" 18060 "the sum in the store"
is "$(cat "$O"/*.json | jq -s 'map(.n | tonumber) | add')" 18060 "the sum in the other mount"
ok

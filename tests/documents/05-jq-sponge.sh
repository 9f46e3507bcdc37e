#!/bin/bash
# jq | sponge, and jq into a variable and back
. "$(dirname "$0")/_lib.sh"
made ada '{"born":"1816","name":"Ada"}'
jq '.born = "1815"' "$D/ada.json" | sponge "$D/ada.json"
is "$(theirs get ada)" '{"born":"1815","name":"Ada"}' 'after jq | sponge'
text=$(jq '.city = "London" | del(.name)' "$D/ada.json") && echo "$text" >"$D/ada.json"
is "$(theirs get ada)" '{"born":"1815","city":"London"}' 'after jq and echo'
jq -n '{name: "Ben"}' | sponge "$D/ben.json"
is "$(theirs get ben)" '{"name":"Ben"}' 'a new document'
ok

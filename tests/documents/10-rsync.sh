#!/bin/bash
# rsync between two stores; the second run sends nothing; --delete
. "$(dirname "$0")/_lib.sh"
fill 30
rsync -r "$D/" "$X/" || die "rsync there"
is "$(elsewhere names)" "$(theirs names)" "names in the other store"
is "$(elsewhere sum)" 465 "the sum in the other store"
# What the other store has made of them goes back; then both show the same.
rsync -rc "$X/" "$D/" || die "rsync back"
is "$(theirs sum)" 465 "the sum after the way back"
moved=$(rsync -rcni "$X/" "$D/")
[ -z "$moved" ] || die "it would still send: $moved"
elsewhere set d3 text changed
elsewhere remove d4
settle
rsync -rc --delete "$X/" "$D/" || die "rsync --delete"
is "$(theirs get d3 | jq -r .text)" changed "the change"
is "$(theirs get d4)" none "the removed document"
theirs set d5 n 0
settle
rsync -rc --inplace "$D/" "$X/" || die "rsync --inplace"
is "$(elsewhere get d5 | jq -r .n)" 0 "the change in place"
is "$(elsewhere sum)" "$(theirs sum)" "the sums"
elsewhere names >"$W/names"
if grep -v '^d[0-9]*$' "$W/names"; then die "names that nobody made"; fi
ok

#!/bin/bash
# tar of a collection, extracted into another store and over what is there
. "$(dirname "$0")/_lib.sh"
fill 50
tar -C "$M" -cf "$W/all.tar" "$N" || die "tar c"
tar -C "$M" --compare -f "$W/all.tar" || die "tar --compare"
tar -C "${X%/*}" -xmf "$W/all.tar" --no-same-owner --no-same-permissions || die "tar x"
is "$(elsewhere sum)" 1275 "the sum in the other store"
theirs set d7 n 0
theirs remove d8
settle
tar -C "$M" -xmf "$W/all.tar" --no-same-owner --no-same-permissions --overwrite || die "tar x over what is there"
is "$(theirs sum)" 1275 "the sum"
is "$(theirs get d7)" '{"n":"7","text":"line 7"}' "what was extracted"
ok

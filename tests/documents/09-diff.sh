#!/bin/bash
# diff -r of a saved copy and the store tells what another program changed, and patch puts it back
. "$(dirname "$0")/_lib.sh"
fill 40
cp -r "$D" "$W/saved"
diff -r "$W/saved" "$O" || die "the other mount differs"
theirs set d7 text changed
theirs put made '{"name":"new"}'
theirs remove d9
settle
is "$(diff -rq "$W/saved" "$D" | sed "s|$W/saved|A|g; s|$D|B|g" | sort)" "Files A/d7.json and B/d7.json differ
Only in A: d9.json
Only in B: made.json" "what differs"
diff -u "$D/d7.json" "$W/saved/d7.json" >"$W/patch" || true
patch -s "$D/d7.json" "$W/patch" || die patch
cp "$W/saved/d9.json" "$D/"
rm "$D/made.json"
is "$(theirs names | wc -l)" 40 "documents"
is "$(theirs get d7)" '{"n":"7","text":"line 7"}' "what was patched"
settle
diff -r "$W/saved" "$O" || die "it is not as it was"
ok

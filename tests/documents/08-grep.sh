#!/bin/bash
# grep -r finds what other programs have written, while they go on
. "$(dirname "$0")/_lib.sh"
fill 120
is "$(grep -rl '"n": "1[0-9]"' "$D" | wc -l)" 10 "files that match"
is "$(grep -rh '"text": "line 77"' "$D" | tr -d ' ,')" '"text":"line77"' "the line"
theirs set d77 text 'another'
eventually "grep sees the change" grep -rq '"text": "another"' "$O"
theirs remove d78
eventually "grep sees the removal" sh -c "! grep -r '\"line 78\"' $O"
is "$(find "$O" -name '*.json' -print0 | xargs -0 grep -l '"line' | wc -l)" 118 "files with a line"
if grep -rq nobody "$D"; then die "grep found what is not there"; fi
ok

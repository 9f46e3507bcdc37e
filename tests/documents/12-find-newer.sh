#!/bin/bash
# find -newer lists what was changed, here and by another program; what this mount has not seen before is as old as the mount
. "$(dirname "$0")/_lib.sh"
fill 20
is "$(find "$D" -name '*.json' | wc -l)" 20 "files"
sleep 0.05
touch "$W/stamp"
sleep 0.05
sed -i 's/line 3"/new"/' "$D/d3.json"
theirs set d5 text new
theirs put made '{"name":"new"}'
settle
is "$(find "$D" -name '*.json' -newer "$W/stamp" | sed 's|.*/||' | sort | tr '\n' ' ')" 'd3.json d5.json ' "newer files"
is "$(find "$D" -name '*.json' ! -newer "$W/stamp" | wc -l)" 19 "older files"
is "$(find "$D" -name '*.json' -size -1 | wc -l)" 0 "files without a size"
ok

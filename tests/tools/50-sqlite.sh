#!/bin/bash
# sqlite: 1,000 transactions with a rollback journal, killed now and then; what was acknowledged is there (LONG)
. "$(dirname "$0")/_lib.sh"
db=$D/test.db
sqlite3 "$db" 'create table t(i integer primary key, v text)'
writer='
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
first = db.execute("select coalesce(max(i), 0) from t").fetchone()[0] + 1
for i in range(first, 1001):
    db.execute("insert into t values (?, ?)", (i, "x" * 500))
    print(i, flush=True)
'
acknowledged=0 kills=0
while [ "$acknowledged" -lt 1000 ]; do
  python3 -c "$writer" "$db" >>"$W/said" &
  pid=$!
  sleep "$((RANDOM % 4 + 1)).$((RANDOM % 10))"
  if kill -9 "$pid" 2>/dev/null; then kills=$((kills + 1)); fi
  wait "$pid" 2>/dev/null || true
  acknowledged=$(tail -n 1 "$W/said" 2>/dev/null || echo 0)
  : "${acknowledged:=0}"
  check=$(sqlite3 "$db" 'pragma integrity_check; select max(i), count(*) from t')
  there=${check##*|}
  case $check in ok*) ;; *) die "after $kills kills: $check" ;; esac
  [ "$there" -ge "$acknowledged" ] || die "$acknowledged were acknowledged, $there are there"
done
settle
[ "$(sqlite3 -readonly "$O/test.db" 'pragma integrity_check; select count(*) from t' | tr '\n' ' ')" = "ok 1000 " ] || die "the other mount reads something else"
echo "ok $N ($kills kills)"

#!/bin/bash
# logrotate with copytruncate and with rename, while a program appends
. "$(dirname "$0")/_lib.sh"
writer='
import os, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
for i in range(3):
    for j in range(20):
        os.write(fd, b"%d %d\n" % (i, j))
    os.fsync(fd)
    open(sys.argv[2] + str(i), "w").close()
    while not os.path.exists(sys.argv[3] + str(i)): time.sleep(0.05)
'
for way in copytruncate nocopytruncate; do
  log=$D/$way.log
  printf '%s {\n rotate 5\n %s\n create 0644\n missingok\n size 1\n nocompress\n}\n' "$log" "$way" >"$W/$way.conf"
  chmod 644 "$W/$way.conf"
  python3 -c "$writer" "$log" "$W/$way.at" "$W/$way.go" &
  pid=$!
  for i in 0 1 2; do
    while [ ! -e "$W/$way.at$i" ]; do sleep 0.05; done
    logrotate -f -s "$W/state" "$W/$way.conf" || die "logrotate $way"
    : >"$W/$way.go$i"
  done
  wait "$pid"
  settle
  lines=$(cat "$O/$way.log"* | sort -u | wc -l)
  all=$(cat "$O/$way.log"* | wc -l)
  [ "$lines $all" = "60 60" ] || die "$way: $lines different lines of $all, not 60: $(wc -l "$O/$way.log"*)"
done
echo "ok $N"

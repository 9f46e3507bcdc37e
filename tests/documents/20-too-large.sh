#!/bin/bash
# a document over 16 MiB is EFBIG; what was there stays
. "$(dirname "$0")/_lib.sh"
[ "$KIND" != redis ] || skip "Redis takes hashes of any size"
made ada '{"name":"Ada"}'
large() { # FILE MIB
  /usr/bin/python3 - "$@" <<'PY'
import errno, os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
data = b'{"name": "' + b"x" * (int(sys.argv[2]) << 20) + b'"}'
while data: data = data[os.write(fd, data):]
try:
    os.close(fd)
    print("OK")
except OSError as error:
    print(errno.errorcode[error.errno])
PY
}
is "$(large "$D/ada.json" 17)" EFBIG "close"
"$BUCKETFS" why "$D/ada.json" | grep -q 'bytes; .* are possible\|more than' || die "why: $("$BUCKETFS" why "$D/ada.json")"
is "$(theirs get ada)" '{"name":"Ada"}' "the document"
is "$(large "$D/new.json" 17)" EFBIG "close of a new file"
is "$(theirs names)" ada "names"
is "$(large "$D/ada.json" 2)" OK "close of one that fits"
is "$(theirs get ada | wc -c)" $(((2 << 20) + 12)) "the length of one that fits"
ok 2

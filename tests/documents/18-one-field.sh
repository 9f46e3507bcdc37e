#!/bin/bash
# whoever changes a field that another program has changed meanwhile is told, and his text is kept
. "$(dirname "$0")/_lib.sh"
made ada '{"a":"0","b":"0"}'
said=$(/usr/bin/python3 - "$D/ada.json" "$CLIENT" "$URL" "$N" <<'PY'
import errno, os, subprocess, sys
path, client, url, collection = sys.argv[1:]
fd = os.open(path, os.O_RDWR)
text = os.read(fd, 1000).replace(b'"a": "0"', b'"a": "ours"')
subprocess.run(["/usr/bin/python3", client, url, "set", collection, "ada", "a", "theirs"], check=True)
os.pwrite(fd, text, 0)
os.ftruncate(fd, len(text))
try:
    os.close(fd)
    print("OK")
except OSError as error:
    print(errno.errorcode[error.errno])
print(text.decode())
PY
)
is "${said%%$'\n'*}" ESTALE "close"
is "$(theirs get ada)" '{"a":"theirs","b":"0"}' "the document"
kept "${said#*$'\n'}"
grep -q '"theirs"' "$D/ada.json" || die "this mount reads $(cat "$D/ada.json")"
# The next edit is of what is there.
sed -i s/theirs/ours/ "$D/ada.json"
is "$(theirs get ada)" '{"a":"ours","b":"0"}' "the document after the next edit"
ok 1

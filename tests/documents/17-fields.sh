#!/bin/bash
# two mounts and another program change different fields of one document at a time: all of it is kept
. "$(dirname "$0")/_lib.sh"
[ "$KIND" != ferretdb ] || skip "FerretDB finds a document first and writes it later"
made ada '{"a":"0","b":"0","c":"0","d":"0"}'
count() { # FILE FIELD
  /usr/bin/python3 - "$@" <<'PY'
import errno, json, sys
path, field = sys.argv[1:]
def change(number):
    with open(path, "r+") as file:
        try:
            document = json.load(file)
        except OSError as error:
            # The version that was opened is gone.
            if error.errno == errno.ESTALE: return False
            raise
        document[field] = str(number)
        file.seek(0)
        file.truncate()
        json.dump(document, file)
    return True
for number in range(1, 16):
    while not change(number): pass
PY
}
count "$D/ada.json" a & A=$!
count "$O/ada.json" b & B=$!
for number in $(seq 5); do theirs set ada c "$number"; done
wait "$A" || die "the first mount"
wait "$B" || die "the second mount"
is "$(theirs get ada)" '{"a":"15","b":"15","c":"5","d":"0"}' "the document"
ok

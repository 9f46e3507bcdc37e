#!/bin/bash
# json.load and json.dump: in place with truncate, by os.replace, and a new one with O_EXCL
. "$(dirname "$0")/_lib.sh"
seed ada
/usr/bin/python3 - "$D" <<'PY' || die python
import json, os, sys
d = sys.argv[1]
with open(d + "/ada.json", "r+") as file:
    document = json.load(file)
    document["born"] = "1815"
    file.seek(0)
    json.dump(document, file)
    file.truncate()
    os.fsync(file.fileno())
with open(d + "/ada.json") as file:
    assert json.load(file)["born"] == "1815"
PY
edited ada 1816 1815 'json.dump in place'
/usr/bin/python3 - "$D" <<'PY' || die "python by os.replace"
import json, os, sys
d = sys.argv[1]
document = json.load(open(d + "/ada.json"))
document["born"] = "1814"
with open(d + "/ada.json~", "w") as file:
    json.dump(document, file, indent=1)
os.replace(d + "/ada.json~", d + "/ada.json")
with open(d + "/new.json", "x") as file:
    json.dump({"name": "new"}, file)
try:
    open(d + "/new.json", "x")
    sys.exit("it was created twice")
except FileExistsError:
    pass
assert sorted(os.listdir(d)) == ["ada.json", "new.json"], os.listdir(d)
PY
edited ada 1815 1814 os.replace
is "$(theirs get new)" '{"name":"new"}' "the new document"
ok

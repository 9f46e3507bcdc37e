#!/bin/bash
# bytes that are not UTF-8 are EINVAL in a document; those that Redis has are shown as $binary and survive an edit
. "$(dirname "$0")/_lib.sh"
seed ada
printf -v broken '{"name": "\xff"}'
is "$(close_of "$D/ada.json" "$broken")" EINVAL "close"
"$BUCKETFS" why "$D/ada.json" | grep -q 'not UTF-8 from byte 10' || die "why: $("$BUCKETFS" why "$D/ada.json")"
kept "$broken"
is "$(theirs exact ada)" "$(cat "$W/was.ada")" "the document"
if [ "$KIND" = redis ]; then
  printf '\xff\xfe' | redis-cli -u "${URL%\?*}" -x hset "$N:bytes" raw >/dev/null
  redis-cli -u "${URL%\?*}" hset "$N:bytes" name Ada >/dev/null
  eventually "the binary value" grep -q '"raw": {"$binary": "//4="}' "$D/bytes.json"
  sed -i s/Ada/Ben/ "$D/bytes.json"
  is "$(redis-cli -u "${URL%\?*}" hget "$N:bytes" raw | head -c 2 | xxd -p)" fffe "the bytes after an edit"
  is "$(redis-cli -u "${URL%\?*}" hget "$N:bytes" name)" Ben "the name after an edit"
fi
ok 1

#!/bin/bash
# what a file shows can be written back, and each kind of value is what it was: Redis' lists, sets and sorted sets, ids of
# other types
. "$(dirname "$0")/_lib.sh"
seed ada
cat "$D/ada.json" >"$W/text"
cat "$W/text" >"$D/ada.json"
is "$(theirs exact ada)" "$(cat "$W/was.ada")" "the document after it was written back"
jq . "$D/ada.json" >"$W/text"
case $KIND in
  redis)
    ask() { redis-cli -u "${URL%\?*}" "$@"; }
    ask rpush "$N:list" x y >/dev/null
    ask sadd "$N:set" x y >/dev/null
    ask zadd "$N:scores" 1 x 2.5 y >/dev/null
    for key in list set scores; do ask expire "$N:$key" 1000 >/dev/null; done
    eventually "the keys" ls "$D/list.json" "$D/set.json" "$D/scores.json"
    sed -i 's/"y"/"z"/' "$D"/{list,set,scores}.json
    is "$(ask lrange "$N:list" 0 -1 | tr '\n' ' ')" 'x z ' "the list"
    is "$(ask smembers "$N:set" | sort | tr '\n' ' ')" 'x z ' "the set"
    is "$(ask zrange "$N:scores" 0 -1 withscores | tr '\n' ' ')" 'x 1 z 2.5 ' "the sorted set"
    for key in list set scores; do [ "$(ask ttl "$N:$key")" -gt 0 ] || die "$key lives for ever"; done
    ;;
  mongodb | ferretdb)
    /usr/bin/python3 - "$URL" "$N" put <<'PY'
import datetime, sys
import bson, pymongo
all = pymongo.MongoClient(sys.argv[1]).get_default_database()[sys.argv[2]]
for id in (bson.ObjectId("507f1f77bcf86cd799439011"), 42, bson.Int64(1 << 40), "42", 0.5, datetime.datetime(2026, 1, 2)):
    all.insert_one({"_id": id, "born": "1816", "n": bson.Int64(5)})
PY
    settle
    is "$(ls "$D" | LC_ALL=C sort | tr '\n' ' ')" '1099511627776.json 42.json 507f1f77bcf86cd799439011.json ="42".json =0.5.json ={"$date":"2026-01-02T00:00:00Z"}.json ada.json ' "names"
    sed -i s/1816/1815/ "$D"/*.json
    /usr/bin/python3 - "$URL" "$N" <<'PY' || die "the ids are others"
import datetime, sys
import bson, pymongo
all = pymongo.MongoClient(sys.argv[1]).get_default_database()[sys.argv[2]]
for id in (bson.ObjectId("507f1f77bcf86cd799439011"), 42, bson.Int64(1 << 40), "42", 0.5, datetime.datetime(2026, 1, 2)):
    found = all.find_one({"_id": id})
    assert found and type(found["_id"]) is type(id) and found["born"] == "1815" and type(found["n"]) is bson.Int64, (id, found)
PY
    ;;
  rethinkdb)
    for id in 42 0.5 true '["a",1]'; do theirs put "$id" '{"born":"1816","half":0.5}' by-json; done
    settle
    is "$(ls "$D" | LC_ALL=C sort | tr '\n' ' ')" '42.json =0.5.json =["a",1].json =true.json ada.json ' "names"
    sed -i s/1816/1815/ "$D"/*.json
    for id in 42 0.5 true '["a",1]'; do
      is "$(theirs get "$id" by-json)" '{"born":"1815","half":0.5}' "the document $id"
    done
    ;;
esac
ok

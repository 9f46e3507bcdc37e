# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by every NN-*.sh: $1 = a mount in which tools work, $2 = another mount of the same store, $3 = a mount of another store.
# Environment: BUCKETFS, the command; URL and OTHER_URL, the stores of $1 and $3; KIND, redis, mongodb, ferretdb or rethinkdb.
# What has become of documents is asked of the store itself, by client.py.
set -euo pipefail
[ $# = 3 ] && [ -d "$1" ] && [ -d "$2" ] && [ -d "$3" ] || { echo "usage: $0 MOUNT MOUNT OTHER" >&2; exit 2; }
N=$(basename "$0" .sh) W=$(mktemp -d "${TMPDIR:-/var/tmp}/document.XXXXXX")
M=$1 D=$1/$N O=$2/$N X=$3/$N
CLIENT=$(dirname "$(realpath "$0")")/client.py
trap 'code=$?; cd /; rm -f "$D"/* "$X"/* 2>/dev/null; theirs drop; elsewhere drop; rm -rf "$W"; exit "$code"' EXIT
die() {
  echo "FAIL $N: $*" >&2
  exit 1
}
# skip REASON: this store has nothing of the kind.
skip() {
  echo "skip $N: $*"
  exit 0
}
# theirs VERB [NAME [ARGUMENT...]]: what another program does in the collection; elsewhere: in that of the other store.
theirs() { /usr/bin/python3 "$CLIENT" "$URL" "$1" "$N" "${@:2}"; }
elsewhere() { /usr/bin/python3 "$CLIENT" "$OTHER_URL" "$1" "$N" "${@:2}"; }
# is TOLD WANTED WHAT
is() { [ "$1" = "$2" ] || die "$3: $1, not $2"; }
# The other mount believes names for a second.
settle() { sleep 1.2; }
# eventually WHAT COMMAND...: within five seconds.
eventually() {
  local what=$1
  shift
  for _ in $(seq 50); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.1
  done
  die "this never came: $what"
}
# seed NAME: a document of another program, with all that its store has kinds of, in which 1816 is to be changed.
seed() {
  local document
  case $KIND in
    redis) theirs put "$1" '{"lives":true,"fields":{"born":"1816","name":"Ada","long":"9007199254740993","zero":"1.50"}}' ;;
    rethinkdb) theirs put "$1" '{"born":"1816","name":"Ada","half":0.5,"whole":5,"within":{"a":[1,"x",null],"b":{}},"at":{"$reql_type$":"TIME","epoch_time":1.5,"timezone":"+00:00"}}' ;;
    *)
      document='{"born":"1816","name":"Ada","int":{"$numberInt":"5"},"long":{"$numberLong":"5"},"far":{"$numberLong":"9007199254740993"},"whole":{"$numberDouble":"2.0"},"decimal":{"$numberDecimal":"1.50"},"at":{"$date":{"$numberLong":"1500"}},"oid":{"$oid":"507f1f77bcf86cd799439011"},"bytes":{"$binary":{"base64":"AP8=","subType":"00"}},"none":null,"within":{"a":[{"$numberLong":"1"},{"$numberDouble":"2.0"}],"b":{}}}'
      # It knows no decimals.
      [ "$KIND" != ferretdb ] || document=${document/'"decimal":{"$numberDecimal":"1.50"},'/}
      theirs put "$1" "$document"
     ;;
  esac
  theirs exact "$1" >"$W/was.$1"
  appear "$1"
}
# edited NAME FROM TO BY: of a document that seed made just this is another thing now.
edited() {
  local was
  was=$(<"$W/was.$1")
  is "$(theirs exact "$1")" "${was/"$2"/"$3"}" "$1 after $4"
  theirs exact "$1" >"$W/was.$1"
}
# conflicts: how many both mounts of the store have told of.
conflicts() {
  local mount told=0
  for mount in "$M" "${O%/*}"; do
    told=$((told + $("$BUCKETFS" status --json "$mount" | jq '.[0].fs.conflicts | length')))
  done
  echo "$told"
}
# close_of FILE TEXT: what close says to who writes the text.
close_of() {
  /usr/bin/python3 - "$@" <<'PY'
import errno, os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
data = os.fsencode(sys.argv[2])
while data: data = data[os.write(fd, data):]
try:
    os.close(fd)
    print("OK")
except OSError as error:
    print(errno.errorcode[error.errno])
PY
}
# kept TEXT: whether a conflict file, or one in the state directory, has this text.
kept() {
  local file
  for file in "$M" "${O%/*}"; do
    "$BUCKETFS" status --json "$file" | jq -r '.[].fs.conflicts[] | if .kept_as | startswith("/") then .kept_as else (.path | sub("[^/]*$"; "")) + .kept_as end'
  done >"$W/kept"
  while read -r file; do
    [[ $file = /* && -e $file ]] || file=$M/$file
    if [ "$(cat "$file" 2>/dev/null)" = "$1" ]; then return; fi
  done <"$W/kept"
  die "nobody keeps $1: $(cat "$W/kept")"
}
# ok [CONFLICTS]: the end: so many conflicts, none unless they are told, and no file but documents.
ok() {
  is "$(conflicts)" "$((BEFORE + ${1:-0}))" "conflicts"
  rm -f "$D"/*
  local left
  left=$(ls -A "$D" 2>/dev/null || true)
  [ -z "$left" ] || die "left behind: $left"
  is "$(theirs names)" "" "documents left"
  echo "ok $N"
}
# appear NAME...: what another program has made is seen by both mounts.
appear() {
  local name
  for name; do
    eventually "$name in a mount" test -e "$D/$name.json"
    eventually "$name in the other mount" test -e "$O/$name.json"
  done
}
# made NAME DOCUMENT: a document of another program.
made() {
  theirs put "$1" "$2"
  appear "$1"
}
# fill COUNT: documents of another program.
fill() {
  theirs fill "$1"
  appear "d$1"
}
BEFORE=$(conflicts)

# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by every NN-*.sh: $1 = a mount in which tools work, $2 = another mount of the same bucket, where what they did
# is read. Environment: BUCKETFS, the command.
set -euo pipefail
[ $# = 2 ] && [ -d "$1" ] && [ -d "$2" ] || { echo "usage: $0 MOUNT OTHER" >&2; exit 2; }
N=$(basename "$0" .sh) W=$(mktemp -d "${TMPDIR:-/var/tmp}/tool.XXXXXX")
M=$1 D=$1/$N O=$2/$N
trap 'code=$?; cd /; rm -rf "$D" "$W"; exit "$code"' EXIT
mkdir "$D"
die() {
  echo "FAIL $N: $*" >&2
  exit 1
}
# The other mount believes names for a second.
settle() { sleep 1.2; }
# same A B: trees with the same names, kinds, bytes, modes, times and links. Not all tools give links their times.
facts() {
  (cd "$1" && find . -mindepth 1 \( -type d -printf '%P %y %m\n' \) -o \( -type l -printf '%P %y %l\n' \) -o -printf '%P %y %m %s %Ts\n' | LC_ALL=C sort)
}
same() {
  diff -r --no-dereference "$1" "$2" || die "$2 has other content than $1"
  diff <(facts "$1") <(facts "$2") || die "$2 has other attributes than $1"
}
# sent: how many requests of the working mount have changed the store.
sent() {
  "$BUCKETFS" status --json "$M" | python3 -c '
import json, sys
operations = json.load(sys.stdin)[0]["requests"]["operations"]
changing = "put", "copy", "delete", "delete_many", "upload", "complete", "set_attributes", "rename"
print(sum(operations.get(name, {"count": 0})["count"] for name in changing))'
}

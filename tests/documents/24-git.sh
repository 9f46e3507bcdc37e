#!/bin/bash
# git init, add, commit and gc in the layout of files of the same server: objects of Redis, GridFS of MongoDB
. "$(dirname "$0")/_lib.sh"
case $KIND in
  redis) files="${URL%/*}/9?layout=objects" ;;
  mongodb) files="$URL/git$$?layout=gridfs" ;;
  ferretdb) skip "FerretDB takes minutes for it" ;;
  *) skip "RethinkDB keeps no files" ;;
esac
export GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@example.org GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@example.org GIT_CONFIG_GLOBAL=/dev/null
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
G=${M%/*}/git
mkdir "$G"
"$BUCKETFS" mount "$files" "$G" || die "mount $files"
leave() {
  local code=$?
  "$BUCKETFS" umount "$G" || umount -l "$G"
  rmdir "$G"
  rm -rf "$W"
  exit "$code"
}
trap leave EXIT
git init -q "$G/r"
for file in $(seq 40); do echo "line $file" >"$G/r/f$file"; done
git -C "$G/r" add .
git -C "$G/r" commit -qm first
echo changed >"$G/r/f7"
git -C "$G/r" commit -qam second
git -C "$G/r" gc -q
git -C "$G/r" fsck --full --strict || die fsck
"$BUCKETFS" umount "$G"
head=$(/usr/bin/python3 - "$files" <<'PY'
import subprocess, sys
url, _, _ = sys.argv[1].partition("?")
if url.startswith("redis:"):
    said = subprocess.run(["redis-cli", "-u", url, "--raw", "keys", "{bucketfs}:*"], capture_output=True, text=True, check=True)
    print(sum(key.endswith("r/.git/HEAD") for key in said.stdout.split("\n")))
else:
    import gridfs, pymongo
    base, _, bucket = url.rpartition("/")
    found = gridfs.GridFS(pymongo.MongoClient(base).get_default_database(), bucket)
    print(found.get_last_version("r/.git/HEAD").read() == b"ref: refs/heads/master\n" and 1)
PY
)
is "$head" 1 "what another program sees of HEAD"
"$BUCKETFS" mount "$files" "$G" || die "mount again"
is "$(git -C "$G/r" rev-list --count HEAD)" 2 "commits"
[ -z "$(git -C "$G/r" status --porcelain)" ] || die "not clean"
is "$(git -C "$G/r" show HEAD~:f7)" 'line 7' "the old file"
rm -rf "$G/r"
is "$(ls -A "$G")" "" "what is left"
ok

#!/bin/bash
# git: a clone of 2,000 files, status, commit, gc, fsck (LONG)
. "$(dirname "$0")/_lib.sh"
export GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@example.org GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@example.org GIT_CONFIG_GLOBAL=/dev/null
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
git init -q "$W/source"
for d in $(seq 20); do
  mkdir "$W/source/d$d"
  for f in $(seq 100); do echo "line $d $f" >"$W/source/d$d/f$f.c"; done
done
git -C "$W/source" add .
git -C "$W/source" commit -qm first
git clone -q --bare "$W/source" "$W/bare.git"
git clone -q "$W/bare.git" "$D/clone"
[ -z "$(git -C "$D/clone" status --porcelain)" ] || die "a fresh clone is not clean"
echo changed >"$D/clone/d7/f7.c"
echo new >"$D/clone/new"
git -C "$D/clone" add .
git -C "$D/clone" commit -qm second
git -C "$D/clone" gc -q
git -C "$D/clone" fsck --full --strict || die fsck
git -C "$D/clone" push -q origin HEAD
settle
git -C "$O/clone" fsck --full || die "fsck in the other mount"
[ -z "$(git -C "$O/clone" status --porcelain)" ] || die "not clean in the other mount"
[ "$(git -C "$O/clone" rev-list --count HEAD)" = 2 ] || die "not two commits"
[ "$(git -C "$W/bare.git" rev-list --count HEAD)" = 2 ] || die "the push did not arrive"
diff -r --exclude .git "$D/clone" "$O/clone" || die diff
echo "ok $N"

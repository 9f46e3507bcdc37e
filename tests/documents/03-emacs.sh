#!/bin/bash
# emacs: an auto-save file, a backup by rename, then none
. "$(dirname "$0")/_lib.sh"
seed ada
edit='(progn (setq make-backup-files %s version-control nil) (goto-char 1) (search-forward "%s") (replace-match "%s") (do-auto-save t) (save-buffer))'
# shellcheck disable=SC2059
for way in 't 1816 1815' 'nil 1815 1814'; do
  read -r backup from to <<<"$way"
  emacs -Q --batch "$D/ada.json" --eval "$(printf "$edit" "$backup" "$from" "$to")" >"$W/said" 2>&1 || die "emacs: $(cat "$W/said")"
  edited ada "$from" "$to" "emacs, make-backup-files $backup"
done
grep -q '"1816"' "$D/ada.json~" || die "the backup is $(cat "$D/ada.json~")"
is "$(theirs names)" ada "names in the store"
ok

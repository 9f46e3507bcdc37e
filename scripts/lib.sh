# shellcheck shell=bash
# Sourced by the scripts beside it: messages, packages, toolchains, temporary places, buckets.
set -euo pipefail

# Where the project lies.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Tools of the system come before wrappers in somebody's home, which other users cannot run.
SYSTEM_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# has COMMAND: whether it can be run; those of administrators count.
has() { PATH=$PATH:$SYSTEM_PATH command -v "$1" >/dev/null; }

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif has sudo; then
    sudo "$@"
  else
    die "needs root, or sudo, for: $*"
  fi
}

# quietly COMMAND...: shows what it said only if it fails.
quietly() {
  local log code=0
  log=$(mktemp)
  "$@" >"$log" 2>&1 </dev/null || code=$?
  [ "$code" = 0 ] || tail -n 30 "$log" >&2
  rm -f "$log"
  return "$code"
}

# need COMMAND=PACKAGE...: installs the Debian packages whose command is missing.
need() {
  local pair missing=()
  for pair; do
    has "${pair%%=*}" || missing+=("${pair#*=}")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  has apt-get || die "needs ${missing[*]}: install what your system calls these, then run this again"
  echo "Installing ${missing[*]}"
  apt_install "${missing[@]}" || die "could not install ${missing[*]}"
}

# apt_install PACKAGE...: starts no service, asks nothing.
apt_install() {
  local apt=(env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -q -o DPkg::Lock::Timeout=300)
  quietly as_root "${apt[@]}" update
  quietly as_root "${apt[@]}" install -y --no-install-recommends "$@"
}

# The oldest Rust that builds this, from Cargo.toml.
rust_wanted() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$HERE/Cargo.toml"; }

# at_least WANTED FOUND: compares versions.
at_least() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

# rust_serves: whether Rust is there and new enough.
rust_serves() {
  local found
  found=$(cd "$HERE" && cargo --version 2>/dev/null | cut -d ' ' -f 2) || return 1
  [ -n "$found" ] && at_least "$(rust_wanted)" "$found"
}

# rust COMPONENT...: puts a Rust that serves into the PATH, by rustup if there is none.
rust() {
  export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
  if ! rust_serves; then
    if has rustup; then
      echo "Updating Rust to $(rust_wanted) or newer"
      quietly rustup toolchain install stable --profile minimal
    else
      echo "Installing Rust with rustup"
      quietly sh -c "curl --proto '=https' --tlsv1.2 -fsS https://sh.rustup.rs | sh -s -- -y --profile minimal --no-modify-path"
      export PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    fi
    rust_serves || export RUSTUP_TOOLCHAIN=stable
    rust_serves || die "needs Rust $(rust_wanted) or newer: see https://rustup.rs"
  fi
  local component
  for component; do
    cargo "${component#cargo-}" --version >/dev/null 2>&1 ||
      quietly rustup component add "${component#cargo-}" || die "needs cargo ${component#cargo-}"
  done
}

# needs_fuse: this kernel mounts filesystems of programs.
needs_fuse() {
  [ -c /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
  [ -c /dev/fuse ] || die "there is no /dev/fuse: in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN"
}

# bucketfs_binary: the command to try, which is $BUCKETFS_BIN or the newest build.
bucketfs_binary() {
  local target=${CARGO_TARGET_DIR:-$HERE/target} newest=${BUCKETFS_BIN:-} one
  if [ -z "$newest" ]; then
    for one in "$target"/{release,debug}/bucketfs; do
      [ -x "$one" ] && [[ -z $newest || $one -nt $newest ]] && newest=$one
    done
  fi
  [ -x "$newest" ] || die "nothing is built: run \`cargo build\` first, or set BUCKETFS_BIN"
  realpath "$newest"
}

# mounts_below DIR: mount points there, deepest first. Asks none of them.
mounts_below() {
  awk -v dir="$1/" 'index($5 "/", dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r
}

# processes_below DIR: pids whose command line names a path there.
processes_below() {
  local found
  # Read to its end first, for the grep finds itself too.
  mapfile -t found < <(grep -lsaF -e "$1/" /proc/[0-9]*/cmdline)
  for found in "${found[@]}"; do
    [ ! -e "$found" ] || echo "${found//[!0-9]/}"
  done
}

# clear_away DIR: takes mounts below DIR away, ends processes that were started from it, removes it.
clear_away() {
  local dir=$1 mount pid at file
  # Whoever is told to end a second time still does this.
  trap '' INT TERM HUP
  cd /
  for mount in $(mounts_below "$dir"); do
    umount -l "$mount" 2>/dev/null || fusermount3 -uz "$mount" 2>/dev/null || true
  done
  # Servers, whose command lines need not name it.
  for file in "$dir"/*/pid; do
    [ -f "$file" ] || continue
    read -r pid at <"$file" || continue
    if [ "$(awk '{ print $22 }' "/proc/$pid/stat" 2>/dev/null)" = "$at" ]; then
      kill "$pid" 2>/dev/null || true
    fi
  done
  for pid in $(processes_below "$dir"); do
    kill "$pid" 2>/dev/null || true
  done
  for _ in $(seq 30); do
    [ -n "$(processes_below "$dir")" ] || break
    sleep 0.1
  done
  for pid in $(processes_below "$dir"); do
    kill -9 "$pid" 2>/dev/null || true
  done
  [ -n "$(mounts_below "$dir")" ] || rm -rf --one-file-system "$dir"
}

# private_mounts DIR: what bucketfs keeps goes below DIR, and no other setting of the environment
# reaches it.
private_mounts() {
  mkdir -p "$1/run" "$1/home"
  unset "${!BUCKETFS_@}"
  export BUCKETFS_RUNTIME_DIR=$1/run BUCKETFS_STATE_DIR=$1/state BUCKETFS_STAGING_DIR=$1/staging
}

# free_port: a port of 127.0.0.1 that nobody uses.
free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# minio_tools: what MinIO is built with, unless it is built. Says why not if that cannot be.
minio_tools() {
  compgen -G "${BUCKETFS_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/bucketfs-servers}/minio-*/minio" >/dev/null && return
  has go || apt_install golang-go || return
  echo "Building MinIO (some minutes, once)"
}

# start_minio DIR: starts one there, and exports how it is reached.
start_minio() {
  local facts name value
  facts=$(timeout 1800 "$HERE/scripts/servers/minio" start "$1" "$(free_port)") || return
  while IFS='=' read -r name value; do
    export "$name=$value"
  done <<<"$facts"
}

# start_redis DIR [OPTION...]: starts one there, and exports its REDIS_URL.
start_redis() {
  local dir=$1 facts
  shift
  facts=$(REDIS_ARGS="$*" timeout 600 "$HERE/scripts/servers/redis" start "$dir" "$(free_port)") || return
  export "${facts?}"
}

# start_mongo DIR: starts one there, and exports its MONGODB_URL.
start_mongo() {
  local dir=$1 facts
  facts=$(timeout 600 "$HERE/scripts/servers/mongo" start "$dir" "$(free_port)") || return
  export "${facts?}"
}

# start_rethinkdb DIR: starts the double there, and exports its RETHINKDB_URL and RETHINKDB_CONTROL.
start_rethinkdb() {
  local facts name value
  facts=$(timeout 1200 "$HERE/scripts/servers/rethinkdb" start "$1" "$(free_port)") || return
  while IFS='=' read -r name value; do
    export "$name=$value"
  done <<<"$facts"
}

# make_bucket NAME: on the server of S3_ENDPOINT, with the credentials of the environment.
make_bucket() {
  curl -fsS -X PUT --aws-sigv4 "aws:amz:${AWS_REGION:-us-east-1}:s3" \
    --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" "$S3_ENDPOINT/$1" >/dev/null
}

# s3_arguments: what `bucketfs mount` needs for that server.
s3_arguments() {
  printf '%s\n' --endpoint-url "$S3_ENDPOINT" --force-path-style --region "${AWS_REGION:-us-east-1}"
}

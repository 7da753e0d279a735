# shellcheck shell=bash
# What the scripts share that try out what is shipped: what they say, and how they wait. Sourced in the project's root.

say() { printf '== %s\n' "$*"; }
fail() {
  printf 'FAILED: %s\n' "$*" >&2
  exit 1
}

# until_true SECONDS WHAT COMMAND...: tries twice a second.
until_true() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || fail "waited in vain for $what"
    sleep 0.5
  done
}

# has PATTERN: whether the input has it. Reads to the end: whoever writes must not fail because nobody reads on.
has() {
  local found
  found=$(grep -- "$1") && [ -n "$found" ]
}

# A call by reflection.
call() { .tools/bin/grpcurl -plaintext -max-time 20 "$@"; }

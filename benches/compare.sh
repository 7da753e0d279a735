#!/bin/sh
# Measures Weir beside the naive baseline, and beside nats-server if there is one, and prints the ratios.
set -eu

usage() {
    cat <<'TEXT'
Usage: benches/compare.sh [--duration TIME] [--rounds N] [-- ARGUMENTS FOR `weir bench compare`]

Builds and starts the servers on free ports of this machine, measures them in turns and ends them again.
Servers share the first core, the load generator has the second one.

Environment:
  WEIR             another weir binary instead of building one
  NAIVE            another baseline binary instead of building one
  WEIR_SERVER      naive: measure the baseline in Weir's place, to see how far apart equals come out
  NAIVE_SCHEDULER  current-thread (default, the cheaper one) or multi-thread (tokio's own default)

Example:
  benches/compare.sh --duration 2s --rounds 5 -- --json
TEXT
}

duration=5s
rounds=3
while [ $# -gt 0 ]; do
    case $1 in
    --duration | --rounds)
        [ $# -ge 2 ] || { usage >&2; exit 2; }
        if [ "$1" = --duration ]; then duration=$2; else rounds=$2; fi
        shift 2
        ;;
    --help | -h) usage; exit 0 ;;
    --) shift; break ;;
    *) usage >&2; exit 2 ;;
    esac
done

cd "$(dirname "$0")/.."
. benches/lib.sh

# Runs a command on a core, if this machine can pin at all.
pin() {
    core=$1
    shift
    if [ "$(getconf _NPROCESSORS_ONLN)" -ge 2 ] && command -v taskset >/dev/null; then
        exec taskset -c "$core" "$@"
    fi
    exec "$@"
}

# Starts a server: name, then its command. Sets `pid` and appends it to `pids`.
start() {
    name=$1
    shift
    (
        export TOKIO_WORKER_THREADS=1 GOMAXPROCS=1
        pin 0 "$@"
    ) >"$work/$name.log" 2>&1 &
    pid=$!
    pids="$pids $pid"
}

# Waits until a process listens on a port of this machine: pid, port, name.
await_port() {
    hex=$(printf ':%04X ' "$2")
    tries=0
    until grep -q "$hex.* 0A " /proc/net/tcp; do
        kill -0 "$1" 2>/dev/null || fail "$3 ended at once" "$work/$3.log"
        tries=$((tries + 1))
        [ $tries -lt 100 ] || fail "$3 does not listen on port $2" "$work/$3.log"
        sleep 0.1
    done
}

build_naive() {
    cargo bench --no-run --bench naive 2>&1 | tee "$work/build.log" |
        sed -n 's/.*Executable.*(\(.*\)).*/\1/p' | tail -n 1
}

weir=${WEIR:-$(build_weir)}
naive=${NAIVE:-$(build_naive)}
[ -x "$weir" ] || fail "there is no weir binary to run"
[ -x "$naive" ] || fail "there is no baseline binary to run" "$work/build.log"
scheduler=${NAIVE_SCHEDULER:-current-thread}

weir_port=$(free_port 1)
if [ "${WEIR_SERVER:-weir}" = naive ]; then
    start weir "$naive" --addr "127.0.0.1:$weir_port" --scheduler "$scheduler"
else
    http=$(free_port 2)
    admin=$(free_port 3)
    start weir env "WEIR__SERVER__GRPC=127.0.0.1:$weir_port" "WEIR__SERVER__HTTP=127.0.0.1:$http" \
        "WEIR__SERVER__ADMIN=127.0.0.1:$admin" "WEIR__LOG__DIR=$work/data" "$weir" serve
fi
weir_pid=$pid

naive_port=$(free_port 4)
start naive "$naive" --addr "127.0.0.1:$naive_port" --scheduler "$scheduler"
naive_pid=$pid

nats_server=$(command -v nats-server || :)
[ -n "$nats_server" ] || [ ! -x .tools/bin/nats-server ] || nats_server=.tools/bin/nats-server
if [ -n "$nats_server" ]; then
    nats_port=$(free_port 5)
    start nats "$nats_server" --addr 127.0.0.1 --port "$nats_port"
    await_port "$pid" "$nats_port" nats
    set -- --nats-addr "127.0.0.1:$nats_port" --nats-pid "$pid" "$@"
fi
await_port "$weir_pid" "$weir_port" weir
[ "${WEIR_SERVER:-weir}" = naive ] || await_health "$weir_pid" "$weir_port" "$work/weir.log"
await_port "$naive_pid" "$naive_port" naive

(
    pin 1 "$weir" bench compare --addr "http://127.0.0.1:$weir_port" --pid "$weir_pid" \
        --baseline-addr "http://127.0.0.1:$naive_port" --baseline-pid "$naive_pid" \
        --duration "$duration" --rounds "$rounds" "$@"
)

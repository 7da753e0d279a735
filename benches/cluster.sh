#!/bin/sh
# Measures one or three replicas on NATS JetStream beside the bare server.
set -eu

usage() {
    cat <<'TEXT'
Usage: benches/cluster.sh [--replicas 1|3] [--servers 1|3] [--sync] [-- ARGUMENTS FOR `weir bench cluster`]

Builds Weir, starts nats-server and the replicas on free ports of this machine, measures in turns and ends them again.

  --replicas N  replicas of Weir (1)
  --servers N   servers of NATS, each with a copy of the stream (1)
  --sync        NATS flushes each message to the disk (sync_interval: always); give it fewer messages: -- --count 5000

Environment:
  WEIR  another weir binary instead of building one

Example:
  benches/cluster.sh --replicas 3 --servers 3 -- --rounds 5
TEXT
}

replicas=1
servers=1
sync=
while [ $# -gt 0 ]; do
    case $1 in
    --replicas | --servers)
        case ${2:-} in 1 | 3) ;; *) usage >&2; exit 2 ;; esac
        if [ "$1" = --replicas ]; then replicas=$2; else servers=$2; fi
        shift 2
        ;;
    --sync) sync='sync_interval: always'; shift ;;
    --help | -h) usage; exit 0 ;;
    --) shift; break ;;
    *) usage >&2; exit 2 ;;
    esac
done

cd "$(dirname "$0")/.."
. benches/lib.sh

nats_server=$(command -v nats-server || :)
[ -n "$nats_server" ] || nats_server=.tools/bin/nats-server
[ -x "$nats_server" ] || fail "there is no nats-server: run 'make tools'"
weir=${WEIR:-$(build_weir)}
[ -x "$weir" ] || fail "there is no weir binary to run"

routes=
for index in $(seq "$servers"); do
    routes="$routes nats://127.0.0.1:$(free_port "$index")"
done
urls=
for index in $(seq "$servers"); do
    port=$(free_port $((10 + index)))
    conf=$work/nats$index.conf
    printf 'max_payload: 16MB\njetstream {\n  store_dir: "%s/nats%s"\n  %s\n}\n' "$work" "$index" "$sync" >"$conf"
    if [ "$servers" -gt 1 ]; then
        printf 'server_name: n%s\ncluster { name: weir, listen: "127.0.0.1:%s", routes: [%s] }\n' \
            "$index" "$(free_port "$index")" "$(echo $routes | tr ' ' ',')" >>"$conf"
    fi
    "$nats_server" -a 127.0.0.1 -p "$port" -c "$conf" >"$work/nats$index.log" 2>&1 &
    pids="$pids $!"
    urls="${urls:+$urls,}nats://127.0.0.1:$port"
done

addresses=
for index in $(seq "$replicas"); do
    port=$(free_port $((20 + index)))
    env "WEIR__SERVER__GRPC=127.0.0.1:$port" "WEIR__SERVER__HTTP=127.0.0.1:0" "WEIR__SERVER__ADMIN=127.0.0.1:0" \
        "WEIR__SERVER__INSTANCE_ID=bench-$index" WEIR__LOG__ENGINE=jetstream "WEIR__LOG__DIR=$work/weir$index" \
        "WEIR__JETSTREAM__URL=$urls" "WEIR__JETSTREAM__REPLICAS=$servers" "$weir" serve >"$work/weir$index.log" 2>&1 &
    pids="$pids $!"
    await_health $! "$port" "$work/weir$index.log"
    addresses="$addresses --addr http://127.0.0.1:$port"
done

echo "$replicas of Weir on $servers of NATS $("$nats_server" --version | sed 's/.*v//')${sync:+, $sync}"
# shellcheck disable=SC2086
"$weir" bench cluster $addresses --nats "${urls%%,*}" --nats-replicas "$servers" "$@"

#!/usr/bin/env bash
# Builds the image, brings up docker-compose.yml as far as its images can be had, and uses it as a client would: not part of
# `make test`, for it needs a container engine. Run `make tools` first: grpcurl and python come from there.
#
#   tests/compose.sh            images that are not on this machine are pulled
#   PULL=never tests/compose.sh only services whose images are on this machine
#
# It works in a project of its own, so that a running one keeps its volumes; its ports must be free. Everything is taken down
# at the end, whatever happened.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tests/lib.sh
. tests/lib.sh
root=$PWD
grpcurl=$root/.tools/bin/grpcurl
python=$root/.tools/bin/python
pull=${PULL:-missing}
server=127.0.0.1:50051
readers=40
limit_bytes=$((40 * 1000 * 1000))
otlp_port=14317
work=$(mktemp -d)
sink=
streams=()

if docker compose version >/dev/null 2>&1; then
  compose=(docker compose)
else
  compose=(docker-compose)
fi
compose+=(--project-name weir-test -f docker-compose.yml -f "$work/override.yml" --profile cluster --profile load)

cleanup() {
  local status=$?
  [ -z "$sink" ] || kill "$sink" 2>/dev/null || true
  [ ${#streams[@]} -eq 0 ] || kill "${streams[@]}" 2>/dev/null || true
  if [ $status -ne 0 ] && [ -e "$work/override.yml" ]; then
    "${compose[@]}" logs --tail 30 2>&1 | cut -c1-300 || true
  fi
  [ ! -e "$work/override.yml" ] || "${compose[@]}" down --volumes --timeout 60 >/dev/null 2>&1 || true
  rm -rf "$work"
  exit $status
}
trap cleanup EXIT

is_healthy() {
  [ "$(docker inspect --format '{{.State.Health.Status}}' "$("${compose[@]}" ps -q "$1")")" = healthy ]
}

# has_all: the ten messages that were sent are stored.
has_all() {
  "${compose[@]}" up -d --no-deps weir
  until_true 60 "a healthy weir" is_healthy weir
  local stored
  stored=$({ call -max-time 5 -d '{"user": "bob", "room": "general", "after_sequence": 0}' $server \
    chat.ChatService/SubscribeMessages 2>/dev/null || true; } | grep -c '"content": "hello')
  [ "$stored" = 10 ] || fail "$stored of 10 messages are stored"
}
message() { printf '{"user": "ann", "room": "%s", "content": "%s"}' "$1" "$2"; }

docker info >/dev/null 2>&1 || fail "there is no container engine, or it may not be used"
for tool in "$grpcurl" "$python"; do
  [ -x "$tool" ] || fail "$tool is missing: run \`make tools\`"
done

say "Image"
DOCKER_BUILDKIT=1 docker build --quiet -t weir:0.1.0 \
  --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)" . >/dev/null
size=$(docker image inspect --format '{{.Size}}' weir:0.1.0)
printf 'weir:0.1.0 takes %s bytes\n' "$size"
[ "$size" -le $limit_bytes ] || fail "the image is larger than $limit_bytes bytes"
user=$(docker image inspect --format '{{.Config.User}}' weir:0.1.0)
[ "$user" = 65532:65532 ] || fail "the image runs as $user"
docker run --rm --read-only --cap-drop ALL weir:0.1.0 config check --config /etc/weir/weir.toml

# Traces of `weir` come to a receiver on this machine; the replicas send theirs to Jaeger.
cat >"$work/override.yml" <<EOF
services:
  weir:
    environment:
      WEIR__TELEMETRY__OTLP_ENDPOINT: http://collector:$otlp_port
    extra_hosts:
      - collector:host-gateway
EOF
"$python" tests/compose/otlp_sink.py $otlp_port "$work/spans" &
sink=$!

say "Services"
wanted=(weir)
image_of() { "$python" -c 'import sys, ruamel.yaml as y
print(y.YAML(typ="safe").load(open("docker-compose.yml"))["services"][sys.argv[1]]["image"])' "$1"; }
for service in prometheus grafana jaeger nats; do
  image=$(image_of $service)
  if docker image inspect "$image" >/dev/null 2>&1 ||
    { [ "$pull" != never ] && docker pull --quiet "$image" >/dev/null 2>&1; }; then
    wanted+=("$service")
  else
    printf '%s is left out: %s cannot be had here\n' $service "$image"
  fi
done
runs() { [[ " ${wanted[*]} " == *" $1 "* ]]; }
if runs nats; then
  wanted+=(weir-1 weir-2)
fi
"${compose[@]}" up -d --no-deps "${wanted[@]}"
until_true 60 "a healthy weir" is_healthy weir

say "A client"
call $server list | has '^chat.ChatService$' || fail "reflection does not list chat.ChatService"
call $server describe chat.ChatService | has SubscribeMessages || fail "reflection does not describe the service"
call -d '{"service": ""}' $server grpc.health.v1.Health/Check | has '"SERVING"' || fail "not serving"
for number in $(seq 10); do
  call -d "$(message general "hello $number")" $server chat.ChatService/SendMessage >/dev/null
done
for port in 50053 50054 50055; do
  call 127.0.0.1:$port list >/dev/null || fail "nothing answers on $port"
done
curl -fsS http://127.0.0.1:8080/ | has Weir || fail "HTTP does not answer"
curl -fsS http://127.0.0.1:9464/readyz >/dev/null || fail "not ready"
until_true 30 "traces" test -s "$work/spans"

if runs prometheus; then
  say "Prometheus"
  is_scraped() {
    curl -fsS 'http://127.0.0.1:9090/api/v1/query?query=up%7Bjob%3D%22weir%22%7D' | has '"1"\]'
  }
  until_true 90 "a scrape" is_scraped
  curl -fsS http://127.0.0.1:9090/api/v1/rules | has WeirDown || fail "Prometheus has no rules"
fi
if runs grafana; then
  say "Grafana"
  until_true 90 "Grafana" curl -fsS http://127.0.0.1:3000/api/health
  curl -fsS http://127.0.0.1:3000/api/dashboards/uid/weir-overview | has 'Weir / Overview' || fail "no dashboards"
fi
if runs weir-1; then
  say "Two replicas"
  until_true 90 "weir-1" is_healthy weir-1
  until_true 90 "weir-2" is_healthy weir-2
  call -d "$(message shared "said at one")" 127.0.0.1:50061 chat.ChatService/SendMessage >/dev/null
  { call -max-time 3 -d '{"user": "bob", "room": "shared", "after_sequence": 0}' 127.0.0.1:50062 \
    chat.ChatService/SubscribeMessages || true; } | has "said at one" || fail "the replicas do not share a log"
fi
if runs jaeger && runs weir-1; then
  say "Jaeger"
  has_traces() {
    curl -fsS 'http://127.0.0.1:16686/api/traces?service=weir&limit=100' | has chat.ChatService/SendMessage
  }
  until_true 60 "traces of the replicas" has_traces
fi

say "A small load"
"${compose[@]}" up -d --no-deps load
delivers() {
  curl -fsS http://127.0.0.1:9464/metrics |
    awk '/^grpc_server_msg_sent_total.*SubscribeMessages/ { count += $NF } END { exit count < 10000 }'
}
until_true 60 "deliveries" delivers
"${compose[@]}" stop load
code=$(docker inspect --format '{{.State.ExitCode}}' "$("${compose[@]}" ps -qa load)")
[ "$code" = 143 ] || fail "the load had to be killed: it ended with $code"

say "A drain under $readers streams"
for number in $(seq $readers); do
  "$grpcurl" -plaintext -max-time 120 -d '{"user": "bob", "room": "general", "after_sequence": 0}' $server \
    chat.ChatService/SubscribeMessages >"$work/stream.$number" 2>&1 &
  streams+=($!)
done
all_read() {
  local file
  for file in "$work"/stream.*; do grep -q "hello 10" "$file" || return 1; done
}
until_true 30 "all streams" all_read
container=$("${compose[@]}" ps -q weir)
"${compose[@]}" stop weir
for pid in "${streams[@]}"; do wait "$pid" || true; done
streams=()
for file in "$work"/stream.*; do
  grep -q 'Code: Unavailable' "$file" && grep -q 'this instance is going away' "$file" ||
    fail "a stream did not end as a drain does: $(tail -n 8 "$file")"
done
code=$(docker inspect --format '{{.State.ExitCode}}' "$container")
[ "$code" = 0 ] || fail "the server ended with $code"

say "The log is still there"
has_all

say "A backup, and back"
"${compose[@]}" exec -T weir weir backup --config /etc/weir/weir.toml >"$work/weir.tar"
"${compose[@]}" rm --stop --force weir
docker volume rm weir-test_weir >/dev/null
"${compose[@]}" run --rm -T --no-deps weir restore --config /etc/weir/weir.toml - <"$work/weir.tar"
has_all

say "Passed with: ${wanted[*]}"

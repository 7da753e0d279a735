#!/usr/bin/env bash
# Sets up a Kubernetes of one node on this machine, applies k8s/ to it and uses it as a client would: not part of
# `make test`. Run `make tools` first: grpcurl and the schemas of custom resources come from there.
#
#   tests/cluster.sh            images that are not on this machine are pulled
#   PULL=never tests/cluster.sh no image is pulled
#   tests/cluster.sh shell      a shell with kubectl instead of the checks
#
# It needs root, two processors and 4 GB of memory, Linux with cgroups, and docker, containerd, runc, iptables, ipset, ip,
# openssl and Go 1.24. Kubernetes itself is built from Go modules into .tools/cluster, once, in a quarter of an hour.
#
# Everything runs in namespaces of its own (processes, network, mounts): what goes on in the machine is neither seen nor
# changed, no port has to be free, and all of it ends with the first process of these namespaces, whatever happened.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tests/lib.sh
. tests/lib.sh
root=$PWD
bin=$root/.tools/cluster

image_of() { "$bin/kubectl" kustomize k8s | sed -n "s#^ *image: \(.*$1:.*\)#\1#p"; }

# ---- outside of the namespaces: programs and images, and what is left at the end

outside() {
  local tool weir nats
  [ "$(id -u)" = 0 ] || fail "it needs root"
  for tool in docker containerd ctr runc iptables ipset ip openssl go; do
    command -v $tool >/dev/null || fail "there is no \`$tool\` on the path"
  done
  for tool in .tools/bin/grpcurl .tools/crds; do
    [ -e $tool ] || fail "$tool is missing: run \`make tools\`"
  done
  docker info >/dev/null 2>&1 || fail "the container engine does not run"
  [ -z "$(pod_groups)" ] || fail "there are control groups of pods: does a kubelet run here?"

  say "Programs"
  tests/cluster/build.sh

  say "Images"
  weir=$(image_of weir) nats=$(image_of nats)
  DOCKER_BUILDKIT=1 docker build --quiet -t "$weir" . >/dev/null
  docker image inspect "$nats" >/dev/null 2>&1 ||
    { [ "${PULL:-missing}" != never ] && docker pull --quiet "$nats" >/dev/null; } || fail "$nats cannot be had"
  work=$(mktemp -d)
  trap clean EXIT
  trap 'exit 130' INT TERM
  tar -C "$bin" -c pause | docker import --change 'ENTRYPOINT ["/pause"]' - weir-test/pause:1 >/dev/null
  docker save -o "$work/images.tar" "$weir" "$nats" weir-test/pause:1
  docker rmi weir-test/pause:1 >/dev/null
  container=$(docker create "$weir")
  docker cp "$container:/usr/local/bin/weir" "$work/weir"
  docker rm "$container" >/dev/null

  local apart=(unshare --mount --net --pid --fork --kill-child --mount-proc "$root/tests/cluster.sh")
  if [ "${1:-}" = shell ]; then
    "${apart[@]}" inside "$work" shell
  else
    "${apart[@]}" inside "$work" &
    inner=$!
    wait "$inner"
  fi
}

# Control groups are the only thing that does not end by itself.
pod_groups() { find /sys/fs/cgroup -maxdepth 2 -name kubepods 2>/dev/null; }

clean() {
  local status=$? group
  if [ -n "${inner:-}" ] && kill -0 "$inner" 2>/dev/null; then
    kill -KILL "$inner"
    wait "$inner" 2>/dev/null || true
  fi
  for group in $(pod_groups); do
    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
  done
  rm -rf "$work"
  exit $status
}

# ---- inside

k() { kubectl -n weir "$@"; }
service=http://weir.weir.svc.cluster.local:50051
weir() { "$work/weir" "$1" --addr $service "${@:2}"; }

diagnose() {
  local status=$?
  if [ $status -ne 0 ]; then
    kubectl get pods -A -o wide || true
    k get events --sort-by .lastTimestamp | tail -n 20 || true
    tail -n 3 "$work"/log/* | cut -c1-300
  fi >&2
  exit $status
}

# apply DIRECTORY [OPTION...]: what the server warns of is a mistake.
apply() {
  kubectl apply -k "$@" >"$work/applied" 2>&1 || fail "kubectl apply -k $* says: $(tail -n 3 "$work/applied")"
  ! grep -i warning "$work/applied" || fail "kubectl apply -k $* warns"
}

has_ready() { [ "$(k get "$1" -o 'jsonpath={.status.readyReplicas}')" = "$2" ]; }
ready() { # SECONDS KIND/NAME COUNT
  until_true "$1" "$3 ready pods of $2" has_ready "$2" "$3"
}

# up SECONDS COUNT: so many replicas of Weir are ready and the Service leads to them.
up() {
  ready "$1" deployment/weir "$2"
  until_true 30 "an answer through the Service" weir health
}

accepted() {
  local crd overlay components
  # One of them comes out of a chart.
  for crd in .tools/crds/*; do grep -v '^{{' "$crd" | kubectl apply --server-side -f - >/dev/null; done
  kubectl wait --for condition=Established crd --all --timeout 30s >/dev/null
  kubectl apply -f k8s/base/namespace.yaml >/dev/null
  cp -r k8s "$work/k8s"
  mkdir "$work/k8s/combination"
  for overlay in base overlays/prod; do
    for components in monitoring 'keda, monitoring' gateway 'gateway, envoy-gateway, tls' nats-tls; do
      printf 'resources: [../%s]\ncomponents: [../components/%s]\n' $overlay "${components//, /, ../components/}" \
        >"$work/k8s/combination/kustomization.yaml"
      apply "$work/k8s/combination" --dry-run=server
    done
  done
  for overlay in dev prod all; do apply k8s/overlays/$overlay --dry-run=server; done
}

# under_load ROOM COMMAND...: while the command runs, 30 subscribers read a room to which numbers are published; each must
# see all of them once and in the same order.
under_load() {
  local room=$1 number=0 reader readers=() stored
  shift
  mkdir "$work/$room"
  touch "$work/$room.goes-on"
  for reader in $(seq 30); do
    weir subscribe "$room" --after 0 --retries 100 >"$work/$room/$reader" 2>"$work/$room/$reader.said" &
    readers+=($!)
  done
  while [ -e "$work/$room.goes-on" ]; do
    echo $((++number))
    sleep 0.02
  done | weir publish "$room" --user ann --retries 100 >"$work/$room.stored" 2>"$work/$room.said" &
  local publisher=$!
  until_true 30 "deliveries" grep -q . "$work/$room/30"
  "$@"
  rm "$work/$room.goes-on"
  wait $publisher || fail "the publisher was refused: $(tail -n 1 "$work/$room.said")"
  stored=$(cat "$work/$room.stored")
  all_read() {
    for reader in $(seq 30); do [ "$(wc -l <"$work/$room/$reader")" -ge "$stored" ] || return 1; done
  }
  until_true 60 "all subscribers of $room" all_read
  kill "${readers[@]}"
  wait "${readers[@]}" 2>/dev/null || true
  for reader in $(seq 30); do
    cut -f4 "$work/$room/$reader" | cmp -s - <(seq "$stored") || fail "a subscriber of $room misses or repeats something"
    cmp -s <(cut -f1 "$work/$room/$reader") <(cut -f1 "$work/$room/1") || fail "sequences of $room differ"
  done
  printf '%s messages, each once and in order at each of 30 subscribers\n' "$stored"
}

restart_weir() {
  local pod
  for pod in $(k get pods -l app.kubernetes.io/name=weir -o name); do
    k logs -f "$pod" >"$work/drain.${pod#pod/}" &
  done
  k rollout restart deployment/weir >/dev/null
  k rollout status deployment/weir --timeout 300s >/dev/null || fail "the rollout does not end"
  until_true 90 "the end of the old pods" has_pods 2
  ! grep -L '"message":"drained"' "$work"/drain.* | grep . || fail "a pod ended without a drain"
  sed -nE 's/.*"timestamp":"[^T]*T([^.]*).*"message":"(drain(ing|ed))"(,"streams":([0-9]+))?.*/\1 \2 \5/p' "$work"/drain.*
}

lose_nats() {
  k delete pod nats-0 >/dev/null
  ready 180 statefulset/nats 3
}

restart_nats() {
  k rollout restart statefulset/nats >/dev/null
  k rollout status statefulset/nats --timeout 400s >/dev/null || fail "the rollout of NATS does not end"
}

# Publishes until there is one replica more.
scale_up() {
  local deadline=$((SECONDS + 180))
  k patch hpa weir -p '{"spec": {"maxReplicas": 3}}' >/dev/null
  until has_ready deployment/weir 3; do
    [ $SECONDS -lt $deadline ] || fail "the autoscaler adds no replica"
    "$work/weir" bench ingest --addr $service --duration 10s >/dev/null 2>&1 || fail "the load was refused"
  done
  k get hpa
}

dev() {
  apply k8s/overlays/dev
  up 60 1
  seq 1000 | weir publish kept --user ann >/dev/null
  k delete pod -l app.kubernetes.io/name=weir >/dev/null
  up 90 1
  never_restarted
  weir subscribe kept --after 0 --count 1000 | cut -f4 | cmp -s - <(seq 1000) || fail "what was stored is gone"
  k exec deployment/weir -- weir backup --config /etc/weir/weir.toml >"$work/weir.tar"
  tar -tf "$work/weir.tar" | has '^summary.json$' || fail "a backup is not whole"
}

has_pods() { [ "$(k get pods -l app.kubernetes.io/name=weir -o name | wc -l)" = "$1" ]; }
never_restarted() {
  ! k get pods -o 'jsonpath={.items[*].status.containerStatuses[*].restartCount}' | has '[1-9]' || fail "a container was started again"
}
is_measured() {
  k get hpa weir -o 'jsonpath={.status.currentMetrics[0].containerResource.current.averageUtilization}' | has .
}
killed() { grep -c 'Kill container' "$work/log/containerd" || true; }

client() {
  local server=${service#http://} url
  call "$server" list | has '^chat.ChatService$' || fail "reflection does not list chat.ChatService"
  call -d '{"user": "ann", "room": "general", "content": "hello"}' "$server" chat.ChatService/SendMessage >/dev/null
  { call -max-time 5 -d '{"user": "bob", "room": "general", "after_sequence": 0}' "$server" \
    chat.ChatService/SubscribeMessages 2>/dev/null || true; } | has hello || fail "what was sent is not read"
  # The name by which a pod knows the Service.
  url=$(weir upload README.md | cut -f2)
  curl -fsS "${url/weir.weir.svc:/weir.weir.svc.cluster.local:}" | cmp -s - README.md || fail "$url is not the file"
}

# reaches NAMESPACE HOST PORT: whether a pod of that namespace can connect there.
reaches() {
  local pod pid
  pod=$(kubectl -n "$1" get pod probe -o 'jsonpath={.status.containerStatuses[0].containerID}')
  pid=$(ctr -n k8s.io task ls | awk -v id="${pod#containerd://}" '$1 == id { print $2 }')
  nsenter --net="/proc/$pid/ns/net" timeout 3 bash -c "exec 3<>/dev/tcp/$2.weir.svc.cluster.local/$3" 2>/dev/null
}

policies() {
  local namespace
  kubectl create namespace monitoring >/dev/null
  for namespace in default monitoring; do
    until_true 30 "the service account of $namespace" kubectl -n $namespace get serviceaccount default
    kubectl -n $namespace run probe --image weir-test/pause:1 >/dev/null
    kubectl -n $namespace wait --for condition=Ready pod/probe --timeout 60s >/dev/null
    reaches $namespace weir 50051 || fail "a pod of $namespace does not reach Weir"
    reaches $namespace weir 8080 || fail "a pod of $namespace does not reach HTTP"
    ! reaches $namespace nats 4222 || fail "a pod of $namespace reaches NATS"
  done
  reaches monitoring weir-headless 9464 || fail "a pod of monitoring does not reach the metrics"
  ! reaches default weir-headless 9464 || fail "any pod reaches the metrics"
}

# certificate NAME SUBJECT: a Secret with a certificate for the name.
certificate() {
  openssl req -new -newkey rsa:2048 -nodes -keyout "$work/$1.key" -subj "/CN=$2" -addext "subjectAltName=DNS:$2" \
    -out "$work/$1.csr" 2>/dev/null
  openssl x509 -req -in "$work/$1.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -copy_extensions copy -days 2 \
    -out "$work/$1.crt" 2>/dev/null
  k create secret generic "$1" --from-file "tls.crt=$work/$1.crt" --from-file "tls.key=$work/$1.key" \
    --from-file "ca.crt=$work/ca.crt" >/dev/null
}

with_tls() {
  kubectl apply -f k8s/base/namespace.yaml >/dev/null
  openssl req -x509 -newkey rsa:2048 -nodes -keyout "$work/ca.key" -out "$work/ca.crt" -subj /CN=ca -days 2 2>/dev/null
  certificate nats-tls nats
  certificate weir-nats-tls weir
  printf 'resources: [../base]\ncomponents: [../components/nats-tls]\n' >"$work/k8s/combination/kustomization.yaml"
  apply "$work/k8s/combination"
  ready 240 statefulset/nats 3
  up 120 2
}

inside() {
  work=$1
  # shellcheck source=tests/cluster/node.sh
  . tests/cluster/node.sh
  trap diagnose EXIT
  trap 'exit 130' INT TERM
  if [ -n "${2:-}" ]; then
    bash || true
    exit 0
  fi

  say "What the API server accepts"
  accepted
  say "kubectl apply -k k8s"
  apply k8s
  ready 240 statefulset/nats 3
  up 120 2
  k get pods
  say "A client"
  client
  [ "$(weir instances | wc -l)" = 2 ] || fail "the replicas do not know each other: $(weir instances)"
  say "Who may reach what"
  policies
  until_true 120 "a measurement of the autoscaler" is_measured
  k get hpa
  never_restarted
  # In a rollout there is one pod more, and two processors have no room for what it asks.
  k set resources deployment/weir --requests cpu=100m >/dev/null
  k patch hpa weir -p '{"spec": {"maxReplicas": 2}}' >/dev/null
  k rollout status deployment/weir --timeout 300s >/dev/null || fail "the rollout does not end"
  until_true 90 "the end of the old pods" has_pods 2

  say "kubectl rollout restart deployment/weir"
  under_load rollout restart_weir
  say "kubectl delete pod nats-0"
  under_load nats lose_nats
  say "kubectl rollout restart statefulset/nats"
  under_load nats-rollout restart_nats
  say "The autoscaler under load"
  scale_up
  never_restarted
  [ "$(killed)" = 0 ] || fail "a container was killed: it did not end in its grace period"

  say "kubectl apply -k k8s/overlays/dev"
  kubectl delete -k k8s --timeout 180s >/dev/null
  dev
  say "With the component nats-tls"
  kubectl delete -k k8s/overlays/dev --timeout 180s >/dev/null
  with_tls
  client
  say "Passed"
}

case ${1:-} in
inside) inside "${@:2}" ;;
*) outside "$@" ;;
esac

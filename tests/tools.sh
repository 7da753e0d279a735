#!/usr/bin/env bash
# Fetches the foreign tools of the interop tests into .tools/, once: a tool that is there in the wanted version is left
# alone, so a second run takes a moment. Needs no root. What cannot be had leaves one sentence in .tools/missing/NAME,
# and the tests that need it fail with that sentence.
#
#   .tools/bin      nats-server prometheus promtool grpcurl kustomize, python and node with their packages on the path, the
#                   Go clients go-client (tests/interop/go) and go-chat, go-notifications … (examples/go), and
#                   kubernetes-oldest and kubernetes-newest, which check manifests (tests/interop/kubernetes), and ip
#   .tools/crds     schemas of the custom resources that k8s/ uses
#   .tools/gen      Python stubs of every proto
#   .tools/log      what each step printed
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
tools=$root/.tools
mkdir -p "$tools"/{bin,gen,log,missing,stamps}
# One run at a time.
if command -v flock >/dev/null 2>&1; then
  exec 9>"$tools/lock"
  flock 9
fi

nats_version=v2.12.4
grpcurl_version=v1.9.3
kustomize_version=v5.8.1
gateway_api_version=v1.6.3
envoy_gateway_version=v1.9.1
keda_version=v2.20.2
prometheus_operator_version=v0.85.0
protoc_gen_go_version=v1.36.10
protoc_gen_go_grpc_version=v1.5.1

say() { printf '  %-12s %s\n' "$1" "$2"; }

# Ends a step: the tool cannot be had, for this reason.
missing() {
  printf '%s\n' "$1" >"$tools/missing/$step"
  exit 3
}

# fetch NAME RECIPE COMMAND...: runs the command unless NAME was made by the same recipe before.
fetch() {
  local step=$1 recipe=$2 began=$SECONDS status
  shift 2
  local stamp=$tools/stamps/$step log=$tools/log/$step
  if [ "$(cat "$stamp" 2>/dev/null)" = "$recipe" ]; then
    say "$step" "ready"
    return
  fi
  rm -f "$stamp" "$tools/missing/$step"
  set +e
  (
    set -e
    "$@"
  ) >"$log" 2>&1 </dev/null
  status=$?
  set -e
  if [ $status -eq 0 ]; then
    printf '%s\n' "$recipe" >"$stamp"
    say "$step" "fetched in $((SECONDS - began)) s"
    return
  fi
  [ -s "$tools/missing/$step" ] || printf 'Fetching %s failed: %s (more in .tools/log/%s).\n' \
    "$step" "$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | cut -c1-200)" "$step" >"$tools/missing/$step"
  say "$step" "missing: $(cat "$tools/missing/$step")"
}

have() { command -v "$1" >/dev/null 2>&1; }

# go_install MODULE@VERSION: builds one command into .tools/bin with the Go that is here.
go_install() {
  GOTOOLCHAIN=local GOBIN=$tools/bin CGO_ENABLED=0 timeout 900 go install -trimpath "$1"
}

# unpack_package NAME: unpacks a Debian package into .tools/apt/root. Where the package lists are absent, fetches them
# into .tools/apt, so that no root is needed.
unpack_package() {
  local apt=$tools/apt
  mkdir -p "$apt/download" "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/root"
  cd "$apt/download"
  rm -f "$1"_*.deb
  if ! apt-get -q -o APT::Sandbox::User= download "$1"; then
    local own=(-o APT::Sandbox::User= -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache")
    timeout 300 apt-get -q "${own[@]}" update
    apt-get -q "${own[@]}" download "$1"
  fi
  dpkg-deb -x "$1"_*.deb "$apt/root"
  rm -f "$1"_*.deb
}

# wrapper NAME LINE...: a script in .tools/bin that finds its surroundings relative to itself.
wrapper() {
  local path=$tools/bin/$1
  shift
  printf '%s\n' '#!/bin/sh' 'tools=$(cd "$(dirname "$0")/.." && pwd)' "$@" >"$path"
  chmod +x "$path"
}

# The release under test where Go can build it; otherwise the distribution's, which may be older.
fetch_nats() {
  if have go && go_install "github.com/nats-io/nats-server/v2@$nats_version"; then
    return
  fi
  have apt-get && have dpkg-deb || missing "nats-server needs Go 1.24 or later, or apt-get, and neither worked here."
  unpack_package nats-server
  install -m 755 "$tools/apt/root/usr/sbin/nats-server" "$tools/bin/nats-server" 2>/dev/null ||
    install -m 755 "$tools/apt/root/usr/bin/nats-server" "$tools/bin/nats-server"
}

# Makes the networks in which packets are lost. Brings the libraries that are not here: libbpf.so.1 is in package libbpf1.
fetch_ip() {
  if have ip; then
    ln -sf "$(command -v ip)" "$tools/bin/ip"
    return
  fi
  have apt-get && have dpkg-deb || missing "ip comes from Debian's package iproute2, and there is no apt-get here."
  unpack_package iproute2
  rm -f "$tools/bin/ip"
  wrapper ip 'LD_LIBRARY_PATH=$(ls -d "$tools"/apt/root/lib/*-gnu* "$tools"/apt/root/usr/lib/*-gnu* 2>/dev/null | paste -sd:)' \
    'export LD_LIBRARY_PATH' 'exec ${RUN:-} "$(ls "$tools/apt/root/bin/ip" "$tools/apt/root/usr/bin/ip" 2>/dev/null | head -n 1)" "$@"'
  local libraries library round
  for round in 1 2 3 4; do
    libraries=$(RUN=ldd "$tools/bin/ip" | sed -nE 's/^[[:space:]]*(lib[a-z]+)\.so\.([0-9]+) => not found/\1\2/p')
    for library in $libraries; do
      unpack_package "$library"
    done
  done
  "$tools/bin/ip" -V
}

fetch_grpcurl() {
  have go || missing "grpcurl needs Go, and there is no \`go\` on the path."
  go_install "github.com/fullstorydev/grpcurl/cmd/grpcurl@$grpcurl_version"
}

fetch_kustomize() {
  have go || missing "kustomize needs Go, and there is no \`go\` on the path."
  go_install "sigs.k8s.io/kustomize/kustomize/v5@$kustomize_version"
}

# crd MODULE@VERSION FILE...: copies files of a Go module into .tools/crds.
crd() {
  local dir module=$1
  shift
  dir=$(cd "$tools/crds" && timeout 300 go mod download -json "$module" |
    sed -n 's/^[[:space:]]*"Dir": "\(.*\)",*$/\1/p')
  (cd "$dir" && install -m 644 "$@" "$tools/crds/")
}

# One program for the oldest Kubernetes that k8s/ is made for, and one for the newest that the Go modules have.
fetch_kubernetes() {
  have go || missing "Checking manifests needs Go 1.26 or later, and there is no \`go\` on the path."
  local version work
  for version in oldest newest; do
    work=$tools/go/kubernetes-$version
    rm -rf "$work"
    mkdir -p "$work"
    cp tests/interop/kubernetes/main.go "$work"
    cp "tests/interop/kubernetes/$version.mod" "$work/go.mod"
    cp "tests/interop/kubernetes/$version.sum" "$work/go.sum"
    (cd "$work" && GOTOOLCHAIN=local CGO_ENABLED=0 timeout 900 go build -trimpath -mod=readonly \
      -o "$tools/bin/kubernetes-$version" .)
  done
  rm -rf "$tools/crds"
  mkdir -p "$tools/crds"
  local gateway=config/crd/standard/gateway.networking.k8s.io envoy=charts/gateway-crds-helm/templates/generated
  crd "sigs.k8s.io/gateway-api@$gateway_api_version" "${gateway}_gateways.yaml" "${gateway}_grpcroutes.yaml"
  crd "github.com/envoyproxy/gateway@$envoy_gateway_version" "$envoy/gateway.envoyproxy.io_backendtrafficpolicies.yaml"
  crd "github.com/kedacore/keda/v2@$keda_version" config/crd/bases/keda.sh_scaledobjects.yaml
  crd "github.com/prometheus-operator/prometheus-operator@$prometheus_operator_version" \
    example/prometheus-operator-crd/monitoring.coreos.com_{prometheusrules,servicemonitors}.yaml
}

fetch_prometheus() {
  have apt-get && have dpkg-deb || missing "prometheus and promtool come from Debian's package, and there is no apt-get here."
  unpack_package prometheus
  install -m 755 "$tools"/apt/root/usr/bin/{prometheus,promtool} "$tools/bin/"
}

fetch_python() {
  have python3 || missing "The Python clients need python3 3.10 or later, and there is none on the path."
  rm -rf "$tools/venv"
  python3 -m venv "$tools/venv" || missing "python3 -m venv does not work here (on Debian the package python3-venv is missing)."
  "$tools/venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
    -r tests/interop/python/requirements.txt
  wrapper python 'PYTHONPATH=$tools/gen${PYTHONPATH:+:$PYTHONPATH} exec "$tools/venv/bin/python" "$@"'
  wrapper hadolint 'exec "$tools/venv/bin/hadolint" "$@"'
}

fetch_stubs() {
  [ -x "$tools/bin/python" ] || missing "$(cat "$tools/missing/python")"
  rm -rf "$tools/gen"
  mkdir -p "$tools/gen"
  find proto -name '*.proto' -print0 | xargs -0 "$tools/bin/python" -m grpc_tools.protoc -I proto \
    --python_out="$tools/gen" --pyi_out="$tools/gen" --grpc_python_out="$tools/gen"
}

fetch_node() {
  have node && have npm || missing "The Node clients need node 18 or later with npm, and they are not on the path."
  rm -rf "$tools/node"
  mkdir -p "$tools/node"
  cp tests/interop/node/package.json tests/interop/node/package-lock.json "$tools/node/"
  (cd "$tools/node" && npm ci --no-audit --no-fund --ignore-scripts --loglevel=error)
  wrapper node "exec env NODE_PATH=\"\$tools/node/node_modules\" \"$(command -v node)\" \"\$@\""
}

# go_clients DIR MODULE PROTO=PACKAGE...: copies the module to .tools/go and makes stubs of the protos in it.
go_clients() {
  local work=$tools/go/$2 from=$1 module=$2 packages=module=$2 protos=()
  shift 2
  for pair; do
    protos+=("${pair%%=*}")
    packages+=",M${pair%%=*}=$module/${pair#*=}"
  done
  rm -rf "$work"
  mkdir -p "$work"
  cp -R "$from/." "$work"
  PATH=$tools/bin:$PATH "$tools/bin/python" -m grpc_tools.protoc -I proto --go_out="$work" --go_opt="$packages" \
    --go-grpc_out="$work" --go-grpc_opt="$packages" "${protos[@]}"
}

# go_build NAME MODULE PACKAGE: builds a program of a module into .tools/bin.
go_build() {
  (cd "$tools/go/$2" && GOTOOLCHAIN=local CGO_ENABLED=0 timeout 900 go build -trimpath -mod=readonly -o "$tools/bin/$1" "$3")
}

fetch_go() {
  have go || missing "The Go clients need Go 1.24 or later, and there is no \`go\` on the path."
  [ -x "$tools/bin/python" ] || missing "$(cat "$tools/missing/python")"
  go_install "google.golang.org/protobuf/cmd/protoc-gen-go@$protoc_gen_go_version"
  go_install "google.golang.org/grpc/cmd/protoc-gen-go-grpc@$protoc_gen_go_grpc_version"
  go_clients tests/interop/go weir-interop chat.proto=chatpb
  go_build go-client weir-interop .
  go_clients examples/go weir-examples chat.proto=chatpb feedback.proto=feedbackpb \
    streaming/v1/streaming.proto=streamingpb weir/v1/files.proto=filespb
  for example in chat notifications upload feedback; do
    go_build "go-$example" weir-examples "./$example"
  done
}

# One line that changes when any of the files or words does.
digest() { cat "$@" | cksum | tr ' ' '-'; }

printf 'Tools for the interop tests, into .tools/\n'
fetch nats-server "$nats_version by $(have go && echo go || echo apt)" fetch_nats
fetch prometheus debian fetch_prometheus
fetch ip "$(command -v ip || echo debian)" fetch_ip
fetch grpcurl "$grpcurl_version" fetch_grpcurl
fetch kustomize "$kustomize_version" fetch_kustomize
kubernetes_versions=$gateway_api_version-$envoy_gateway_version-$keda_version-$prometheus_operator_version
fetch kubernetes "$kubernetes_versions-$(digest tests/interop/kubernetes/*)" fetch_kubernetes
fetch python "$(digest tests/interop/python/requirements.txt)" fetch_python
fetch stubs "$(find proto -name '*.proto' | sort | xargs cat | digest)-$(digest tests/interop/python/requirements.txt)" fetch_stubs
fetch node "$(digest tests/interop/node/package-lock.json)" fetch_node
fetch go "$protoc_gen_go_version-$protoc_gen_go_grpc_version-$(find tests/interop/go examples/go proto -type f | sort | xargs cat | digest)" fetch_go

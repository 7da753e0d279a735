#!/usr/bin/env bash
# Builds what a Kubernetes of one node consists of from Go modules into .tools/cluster, once: a program that is there in
# the wanted version is left alone. It takes a quarter of an hour of two cores and 6 GB in Go's caches.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=$PWD/.tools/cluster
sources=$(mktemp -d)
trap 'rm -rf "$sources"' EXIT
mkdir -p "$bin"

kubernetes=v1.34.4
etcd=v3.6.5
plugins=v1.10.0
coredns=v1.13.1
metrics_server=v0.8.0
kube_router=v2.1.0

export GOTOOLCHAIN=local CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -mod=mod"

# A module's own directory, to be built as its authors build it: `go install` takes no module that replaces others.
# source_of MODULE@VERSION NAME
source_of() {
  local dir
  dir=$(cd "$sources" && go mod download -json "$1" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",*$/\1/p')
  cp -r "$dir" "$sources/$2"
  chmod -R u+w "$sources/$2"
  cd "$sources/$2"
}

# build NAME PACKAGE [LDFLAGS]: one program, with as little of the machine as it takes.
build() { nice go build -p 1 -trimpath -ldflags "-s -w ${3:-}" -o "$bin/$1" "$2"; }

# once NAME VERSION FUNCTION
once() {
  local status
  [ "$(cat "$bin/$1.version" 2>/dev/null)" != "$2" ] || return 0
  printf '  %s %s\n' "$1" "$2"
  set +e
  (
    set -e
    "$3"
  ) >"$bin/$1.log" 2>&1
  status=$?
  set -e
  [ $status -eq 0 ] || {
    printf 'FAILED: %s cannot be built: %s\n' "$1" "$(tail -n 1 "$bin/$1.log")" >&2
    exit 1
  }
  printf '%s\n' "$2" >"$bin/$1.version"
}

build_kubernetes() {
  source_of "k8s.io/kubernetes@$kubernetes" kubernetes
  rm -rf vendor go.work go.work.sum
  sed -i -E "s#=> \./staging/src/(k8s.io/[a-z-]+)#=> \1 v0${kubernetes#v1}#" go.mod
  for program in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
    build $program ./cmd/$program "-X k8s.io/component-base/version.gitVersion=$kubernetes"
  done
}

build_etcd() {
  source_of "go.etcd.io/etcd/server/v3@$etcd" etcd
  # The parts that lie beside it in its repository are modules of the same version.
  sed -i '/=> \.\.\//d' go.mod
  build etcd .
}

build_plugins() {
  source_of "github.com/containernetworking/plugins@$plugins" plugins
  for plugin in main/bridge main/loopback ipam/host-local meta/portmap; do
    build "${plugin#*/}" "./plugins/$plugin"
  done
}

# With the only plugins that are used here.
build_coredns() {
  mkdir "$sources/coredns"
  cd "$sources/coredns"
  cat >main.go <<'END'
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
)

func main() {
	dnsserver.Directives = []string{"ready", "errors", "kubernetes"}
	coremain.Run()
}
END
  go mod init coredns
  go get "github.com/coredns/coredns@$coredns"
  build coredns .
}

build_metrics_server() {
  source_of "sigs.k8s.io/metrics-server@$metrics_server" metrics-server
  build metrics-server ./cmd/metrics-server
}

build_kube_router() {
  source_of "github.com/cloudnativelabs/kube-router/v2@$kube_router" kube-router
  build kube-router ./cmd/kube-router
}

# What keeps a pod's namespaces: it waits for its end.
build_pause() {
  mkdir "$sources/pause"
  cd "$sources/pause"
  cat >main.go <<'END'
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	<-end
}
END
  go mod init pause
  build pause .
}

command -v go >/dev/null || { echo "FAILED: there is no \`go\` on the path" >&2; exit 1; }
once pause 1 build_pause
once plugins $plugins build_plugins
once etcd $etcd build_etcd
once coredns $coredns build_coredns
once metrics-server $metrics_server build_metrics_server
once kube-router $kube_router build_kube_router
once kubernetes $kubernetes build_kubernetes

# Sourced by tests/cluster.sh inside namespaces of its own: starts a Kubernetes of one node. What it starts ends with the
# namespaces: processes, networks, mounts.
# shellcheck shell=bash disable=SC2154
# Uses: $work, a directory on a disk, and $bin, where the programs are. Gives: KUBECONFIG, and the programs on the PATH.

node="node-1"
node_ip=10.98.0.1
pods=10.97.0.0/24
services=10.96.0.0/16
token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
export PATH=$bin:$PATH KUBECONFIG=$work/kubeconfig

# start NAME COMMAND...: in the background; what it says is in the log of that name.
start() {
  local name=$1
  shift
  "$@" >"$work/log/$name" 2>&1 </dev/null &
}

# Nothing of this machine is written to but $work, and what is mounted is mounted here only.
prepare() {
  mkdir -p "$work"/{log,etcd,kubelet,containerd,cni,manifests}
  mount --make-rshared /
  mount -t tmpfs tmpfs /run
  mount -t tmpfs tmpfs /var
  mkdir -p /var/lib /var/log /run/lock
  ln -s /run /var/run
  printf 'nameserver %s\nsearch svc.cluster.local\n' $node_ip >"$work/resolv.conf"
  mount --bind "$work/resolv.conf" /etc/resolv.conf
  ip link set lo up
  ip link add node0 type bridge
  ip address add $node_ip/24 dev node0
  ip link set node0 up
  ip route add default dev node0
  sysctl -qw net.ipv4.ip_forward=1
}

control_plane() {
  openssl genrsa -out "$work/accounts.key" 2048 2>/dev/null
  echo "$token,admin,1,system:masters" >"$work/tokens"
  cat >"$KUBECONFIG" <<END
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "https://127.0.0.1:6443", insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: $token}}]
contexts: [{name: test, context: {cluster: test, user: admin}}]
current-context: test
END
  start etcd etcd --data-dir "$work/etcd" --unsafe-no-fsync --log-level warn
  start apiserver kube-apiserver --etcd-servers http://127.0.0.1:2379 --cert-dir "$work/apiserver" \
    --token-auth-file "$work/tokens" --authorization-mode RBAC --advertise-address $node_ip \
    --kubelet-preferred-address-types InternalIP \
    --service-account-issuer https://kubernetes.default.svc --service-account-key-file "$work/accounts.key" \
    --service-account-signing-key-file "$work/accounts.key" --service-cluster-ip-range $services
  until_true 90 "the API server" kubectl get --raw /readyz
  start controller-manager kube-controller-manager --kubeconfig "$KUBECONFIG" --leader-elect=false \
    --service-account-private-key-file "$work/accounts.key" --allocate-node-cidrs --cluster-cidr $pods \
    --node-cidr-mask-size 24 --service-cluster-ip-range $services
  start scheduler kube-scheduler --kubeconfig "$KUBECONFIG" --leader-elect=false
}

runtime() {
  cat >"$work/containerd.toml" <<END
version = 2
root = "$work/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "weir-test/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$bin"
    conf_dir = "$work/cni"
END
  cat >"$work/cni/pods.conflist" <<END
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "pods0", "isGateway": true, "hairpinMode": true, "ipam": {"type": "host-local",
    "dataDir": "$work/cni/leases", "ranges": [[{"subnet": "$pods"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
  start containerd containerd --config "$work/containerd.toml"
  until_true 30 "containerd" ctr version
  ctr -n k8s.io images import "$work/images.tar" >"$work/log/import" 2>&1 || fail "containerd does not take the images"
}

kubelet_and_proxy() {
  cat >"$work/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
clusterDNS: [$node_ip]
clusterDomain: cluster.local
resolvConf: ""
failSwapOn: false
failCgroupV1: false
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi}
volumePluginDir: $work/kubelet/plugins
END
  start kubelet kubelet --config "$work/kubelet.yaml" --kubeconfig "$KUBECONFIG" --root-dir "$work/kubelet" \
    --hostname-override $node --node-ip $node_ip
  start proxy kube-proxy --kubeconfig "$KUBECONFIG" --hostname-override $node --proxy-mode iptables --cluster-cidr $pods \
    --conntrack-max-per-core 0 --conntrack-tcp-timeout-established 0s --conntrack-tcp-timeout-close-wait 0s
  until_true 90 "a ready node" kubectl wait --for condition=Ready "node/$node" --timeout 1s
}

# Names, network policies, measurements of pods, and a disk for each claim.
additions() {
  printf 'cluster.local:53 {\n errors\n ready\n kubernetes {\n  kubeconfig %s\n }\n}\n' "$KUBECONFIG" >"$work/Corefile"
  start coredns coredns -conf "$work/Corefile"
  start kube-router kube-router --kubeconfig "$KUBECONFIG" --hostname-override $node --run-firewall=true \
    --run-router=false --run-service-proxy=false --service-cluster-ip-range $services
  start metrics-server metrics-server --kubeconfig "$KUBECONFIG" --authorization-kubeconfig "$KUBECONFIG" \
    --authentication-kubeconfig "$KUBECONFIG" --authentication-skip-lookup \
    --authorization-always-allow-paths '/apis/*' --kubelet-insecure-tls \
    --kubelet-preferred-address-types InternalIP --cert-dir "$work/metrics-server" --secure-port 4443 \
    --metric-resolution 15s
  {
    cat <<END
apiVersion: v1
kind: Service
metadata: {name: metrics-server, namespace: kube-system}
spec: {ports: [{port: 443, targetPort: 4443}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: metrics-server, namespace: kube-system, labels: {kubernetes.io/service-name: metrics-server}}
addressType: IPv4
ports: [{name: "", port: 4443, protocol: TCP}]
endpoints: [{addresses: [$node_ip], conditions: {ready: true}}]
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.metrics.k8s.io}
spec:
  group: metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {name: metrics-server, namespace: kube-system}
---
# The API server has no certificate to show to it.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: metrics}
rules: [{apiGroups: [metrics.k8s.io], resources: [pods, nodes], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: metrics}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: metrics}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: "system:anonymous"}]
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
END
    local disk
    for disk in $(seq 7); do
      mkdir -p "$work/disks/$disk"
      cat <<END
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: disk-$disk}
spec:
  storageClassName: local
  capacity: {storage: 10Gi}
  accessModes: [ReadWriteOnce]
  local: {path: $work/disks/$disk}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [
    {key: kubernetes.io/hostname, operator: In, values: [$node]}]}]}}
END
    done
  } | kubectl apply -f - >/dev/null
}

prepare
control_plane
runtime
kubelet_and_proxy
additions

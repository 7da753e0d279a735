//! The manifests of k8s/, rendered as `kubectl apply -k` would and checked without a cluster.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use clap::Parser as _;
use serde_json::Value;
use weir::config::Config;

use crate::{output, support::server::binary, tools::tool};

/// Every component; one that changes another comes after it.
const COMPONENTS: [&str; 6] = [
    "envoy-gateway",
    "gateway",
    "keda",
    "monitoring",
    "nats-tls",
    "tls",
];

/// What the kubelet and the connections left may take beside preStop and drain.
const MARGIN: Duration = Duration::from_secs(15);

/// A copy of k8s/, so that combinations can be added.
struct Manifests(tempfile::TempDir);

impl Manifests {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s"),
            dir.path(),
        );
        Self(dir)
    }

    /// The text that kustomize makes of `overlay` ("" is k8s/ itself) with these components.
    fn render(&self, overlay: &str, components: &[&str]) -> String {
        let below = |path: &str| self.0.path().join(path);
        if components.is_empty() {
            return output("kustomize", &["build", below(overlay).to_str().unwrap()]);
        }
        let resource = match overlay {
            "" => "base",
            overlay => overlay,
        };
        let mut text = format!("resources:\n  - ../{resource}\ncomponents:\n");
        for component in components {
            text.push_str(&format!("  - ../components/{component}\n"));
        }
        let dir = below("combination");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("kustomization.yaml"), text).unwrap();
        output("kustomize", &["build", dir.to_str().unwrap()])
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// The manifests as values, once the checker for this Kubernetes has nothing to say against them.
fn checked(kubernetes: &str, manifests: &str) -> Vec<Value> {
    let program = tool(kubernetes);
    let crds = program.parent().unwrap().with_file_name("crds");
    let crds: Vec<PathBuf> = fs::read_dir(crds)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let mut checker = Command::new(program)
        .args(crds)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = checker.stdin.take().unwrap();
    let text = manifests.to_owned();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()).unwrap());
    let done = checker.wait_with_output().unwrap();
    writer.join().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{kubernetes}: {said}");
    serde_json::from_slice(&done.stdout).unwrap()
}

/// The manifests of an overlay.
fn manifests(overlay: &str) -> Vec<Value> {
    checked("kubernetes-newest", &Manifests::new().render(overlay, &[]))
}

const OVERLAYS: [&str; 4] = ["", "overlays/dev", "overlays/prod", "overlays/all"];

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value
        .pointer(path)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    let found = value.pointer(path).and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
}

fn of_kind<'a>(all: &'a [Value], kind: &str) -> Vec<&'a Value> {
    all.iter()
        .filter(|made| text(made, "/kind") == kind)
        .collect()
}

/// The only one of this kind and name.
fn named<'a>(all: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let of_kind = of_kind(all, kind);
    let mut found = of_kind
        .into_iter()
        .filter(|made| text(made, "/metadata/name") == name);
    let first = found
        .next()
        .unwrap_or_else(|| panic!("there is no {kind} {name}"));
    assert_eq!(found.count(), 0, "{kind} {name} is there twice");
    first
}

/// What runs pods.
fn workloads(all: &[Value]) -> Vec<&Value> {
    let mut found = of_kind(all, "Deployment");
    found.extend(of_kind(all, "StatefulSet"));
    assert!(!found.is_empty());
    found
}

fn containers(workload: &Value) -> &[Value] {
    list(workload, "/spec/template/spec/containers")
}

/// The settings of the rendered ConfigMap that the deployment mounts.
fn settings(all: &[Value]) -> String {
    let deployment = named(all, "Deployment", "weir");
    let volumes = list(deployment, "/spec/template/spec/volumes");
    let name = volumes
        .iter()
        .find(|volume| text(volume, "/name") == "config")
        .map(|volume| text(volume, "/configMap/name"))
        .unwrap();
    let config = named(all, "ConfigMap", name);
    text(config, "/data/weir.toml").to_owned()
}

#[test]
fn every_combination_is_what_kubernetes_knows() {
    let manifests = Manifests::new();
    let mut all = String::new();
    let mut count = 0;
    for overlay in ["", "overlays/dev", "overlays/prod"] {
        for chosen in 0_u32..1 << COMPONENTS.len() {
            let components: Vec<_> = (0..COMPONENTS.len())
                .filter(|at| chosen & (1 << at) != 0)
                .map(|at| COMPONENTS[at])
                .collect();
            let has = |name| components.contains(&name);
            let needs_gateway = (has("tls") || has("envoy-gateway")) && !has("gateway");
            // The replica of dev stands alone.
            let needs_cluster = overlay == "overlays/dev" && (has("keda") || has("nats-tls"));
            if needs_gateway || needs_cluster {
                continue;
            }
            all.push_str("---\n");
            all.push_str(&manifests.render(overlay, &components));
            count += 1;
        }
    }
    all.push_str("---\n");
    all.push_str(&manifests.render("overlays/all", &[]));
    assert!(count > 80, "{count}");
    for kubernetes in ["kubernetes-oldest", "kubernetes-newest"] {
        let all = checked(kubernetes, &all);
        assert!(all.len() > count * 9);
        // Also in an overlay that names none.
        for made in all.iter().filter(|made| text(made, "/kind") != "Namespace") {
            assert_eq!(text(made, "/metadata/namespace"), "weir", "{made}");
        }
    }
}

#[test]
fn the_checker_finds_mistakes() {
    let rendered = Manifests::new().render("overlays/all", &[]);
    for (right, wrong) in [
        ("readOnlyRootFilesystem: true", "readOnlyRoot: true"),
        ("periodSeconds: 3\n", "periodSeconds: soon\n"),
        ("ignoreNullValues: \"false\"", "ignoreNullValues: false"),
        ("requestTimeout: 0s", "requestTimeouts: 0s"),
        ("kind: GRPCRoute\nmetadata", "kind: GRPCRoutes\nmetadata"),
    ] {
        assert!(rendered.contains(right), "{right}");
        let broken = rendered.replace(right, wrong);
        let outcome = std::panic::catch_unwind(|| checked("kubernetes-newest", &broken));
        assert!(outcome.is_err(), "{wrong}");
    }
}

#[test]
fn the_base_needs_no_custom_resources() {
    for overlay in ["", "overlays/dev", "overlays/prod"] {
        for made in manifests(overlay) {
            let group = text(&made, "/apiVersion")
                .split_once('/')
                .map_or("", |(group, _)| group);
            let core = ["", "apps", "autoscaling", "policy", "networking.k8s.io"];
            assert!(core.contains(&group), "{overlay}: {made}");
        }
    }
}

#[test]
fn images_have_tags_and_weir_has_its_version() {
    for overlay in OVERLAYS {
        let all = manifests(overlay);
        for container in workloads(&all).into_iter().flat_map(containers) {
            let image = text(container, "/image");
            let (name, tag) = image
                .rsplit_once(':')
                .unwrap_or_else(|| panic!("{image} has no tag"));
            assert!(!tag.is_empty() && tag != "latest", "{image}");
            if name.ends_with("/weir") {
                assert_eq!(tag, env!("CARGO_PKG_VERSION"), "{overlay}");
            }
        }
    }
}

#[test]
fn the_binary_accepts_what_a_pod_gives_it() {
    for overlay in OVERLAYS {
        let all = manifests(overlay);
        let deployment = named(&all, "Deployment", "weir");
        let container = &containers(deployment)[0];
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("weir.toml");
        fs::write(&file, settings(&all)).unwrap();

        let words = list(container, "/args")
            .iter()
            .map(|word| word.as_str().unwrap());
        let line: Vec<_> = std::iter::once("weir").chain(words).collect();
        assert_eq!(line, ["weir", "serve", "--config", "/etc/weir/weir.toml"]);
        assert!(weir::cli::Cli::try_parse_from(line).is_ok());

        let mut check = Command::new(binary());
        check.args(["config", "check", "--config"]).arg(&file);
        check.current_dir(dir.path());
        for variable in list(container, "/env") {
            // What comes from the pod is its name.
            let value = match text(variable, "/value") {
                "" => "weir-0",
                value => value,
            };
            check.env(text(variable, "/name"), value);
        }
        let done = check.output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(
            done.status.success() && said.is_empty(),
            "{overlay}: {said}"
        );
    }
}

/// The drain of these settings, defaults where they say nothing.
fn drain(settings: &str) -> (Duration, Duration) {
    let table: toml::Table = settings.parse().unwrap();
    let defaults = Config::default().drain;
    let of = |key: &str, default: Duration| {
        let set = table
            .get("drain")
            .and_then(|drain| drain.get(key)?.as_str());
        set.map_or(default, |text| humantime::parse_duration(text).unwrap())
    };
    (of("delay", defaults.delay), of("timeout", defaults.timeout))
}

fn secs(value: &Value, path: &str) -> Duration {
    let found = value.pointer(path).and_then(Value::as_u64);
    Duration::from_secs(found.unwrap_or_else(|| panic!("no {path}")))
}

#[test]
fn download_urls_name_the_service() {
    for overlay in OVERLAYS {
        let all = manifests(overlay);
        let table: toml::Table = settings(&all).parse().unwrap();
        let url = table["files"]["url"].as_str().unwrap();
        let (host, port) = url
            .strip_prefix("http://")
            .and_then(|address| address.rsplit_once(':'))
            .unwrap();
        assert_eq!(host, "weir.weir.svc", "{overlay}");
        let ports = list(named(&all, "Service", "weir"), "/spec/ports");
        let http = ports.iter().find(|made| text(made, "/name") == "http");
        assert_eq!(http.unwrap()["port"].to_string(), port, "{overlay}");
    }
}

#[test]
fn there_is_time_to_drain() {
    for overlay in OVERLAYS {
        let all = manifests(overlay);
        let deployment = named(&all, "Deployment", "weir");
        let container = &containers(deployment)[0];
        let grace = secs(
            deployment,
            "/spec/template/spec/terminationGracePeriodSeconds",
        );
        // The only replica goes at once: its successor needs the log.
        let pre_stop = match overlay {
            "overlays/dev" => Duration::ZERO,
            _ => secs(container, "/lifecycle/preStop/sleep/seconds"),
        };
        assert_eq!(
            container.get("lifecycle").is_none(),
            overlay == "overlays/dev"
        );
        let (delay, timeout) = drain(&settings(&all));
        for timeout in [timeout, Config::default().drain.timeout] {
            assert!(
                pre_stop + timeout + MARGIN <= grace,
                "{overlay}: {pre_stop:?} + {timeout:?} + {MARGIN:?} > {grace:?}"
            );
        }
        // With somebody to go to, an instance listens until everybody knows that it goes.
        if overlay != "overlays/dev" {
            let period = secs(container, "/readinessProbe/periodSeconds");
            let failures = container
                .pointer("/readinessProbe/failureThreshold")
                .unwrap();
            let failures = u32::try_from(failures.as_u64().unwrap()).unwrap();
            assert!(
                delay >= period * failures + Duration::from_secs(3),
                "{overlay}: {delay:?}"
            );
            let nats = named(&all, "StatefulSet", "nats");
            let grace = secs(nats, "/spec/template/spec/terminationGracePeriodSeconds");
            assert!(
                grace >= Duration::from_secs(30 + 10 + 15),
                "{overlay}: {grace:?}"
            );
        }
    }
}

#[test]
fn one_autoscaler_decides_and_dev_has_none() {
    for (overlay, autoscalers, scaled_objects) in [
        ("", 1, 0),
        ("overlays/dev", 0, 0),
        ("overlays/prod", 1, 0),
        ("overlays/all", 0, 1),
    ] {
        let all = manifests(overlay);
        assert_eq!(
            of_kind(&all, "HorizontalPodAutoscaler").len(),
            autoscalers,
            "{overlay}"
        );
        assert_eq!(
            of_kind(&all, "ScaledObject").len(),
            scaled_objects,
            "{overlay}"
        );
        let replicas = named(&all, "Deployment", "weir").pointer("/spec/replicas");
        let expected = (overlay == "overlays/dev").then(|| Value::from(1));
        assert_eq!(replicas, expected.as_ref(), "{overlay}");
    }
}

/// Whether the pods of `workload` have every label of `selector`.
fn selects(selector: &Value, workload: &Value) -> bool {
    let labels = &workload["spec"]["template"]["metadata"]["labels"];
    let wanted = selector.as_object().unwrap();
    wanted
        .iter()
        .all(|(name, value)| labels.get(name) == Some(value))
}

#[test]
fn selectors_ports_and_volumes_name_what_is_there() {
    for overlay in OVERLAYS {
        let all = manifests(overlay);
        let workloads = workloads(&all);
        let selected = |selector: &Value| -> Vec<&Value> {
            let found = workloads
                .iter()
                .filter(|workload| selects(selector, workload));
            found.copied().collect()
        };
        let ports = |workload: &Value| -> BTreeSet<String> {
            let ports = containers(workload)
                .iter()
                .flat_map(|made| list(made, "/ports"));
            ports.map(|port| text(port, "/name").to_owned()).collect()
        };
        for service in of_kind(&all, "Service") {
            let found = selected(&service["spec"]["selector"]);
            assert_eq!(found.len(), 1, "{overlay}: {service}");
            for port in list(service, "/spec/ports") {
                assert!(
                    ports(found[0]).contains(text(port, "/targetPort")),
                    "{overlay}: {port}"
                );
            }
        }
        for made in of_kind(&all, "PodDisruptionBudget") {
            assert_eq!(
                selected(&made["spec"]["selector"]["matchLabels"]).len(),
                1,
                "{made}"
            );
        }
        for policy in of_kind(&all, "NetworkPolicy") {
            let Some(selector) = policy.pointer("/spec/podSelector/matchLabels") else {
                continue;
            };
            let found = selected(selector);
            assert_eq!(found.len(), 1, "{overlay}: {policy}");
            let rules = list(policy, "/spec/ingress").iter();
            for port in rules.flat_map(|rule| list(rule, "/ports")) {
                assert!(
                    ports(found[0]).contains(text(port, "/port")),
                    "{overlay}: {port}"
                );
            }
        }
        for workload in &workloads {
            assert_eq!(
                selected(&workload["spec"]["selector"]["matchLabels"]),
                [*workload]
            );
            let volumes = list(workload, "/spec/template/spec/volumes");
            let sources = volumes.iter().flat_map(|volume| {
                let projected = list(volume, "/projected/sources").iter();
                projected.chain([volume])
            });
            for source in sources {
                if let Some(name) = source.pointer("/configMap/name") {
                    named(&all, "ConfigMap", name.as_str().unwrap());
                }
                if let Some(name) = source.pointer("/persistentVolumeClaim/claimName") {
                    named(&all, "PersistentVolumeClaim", name.as_str().unwrap());
                }
            }
            let account = text(workload, "/spec/template/spec/serviceAccountName");
            assert_eq!(
                named(&all, "ServiceAccount", account)["automountServiceAccountToken"],
                false
            );
        }
    }
}

#[test]
fn pods_are_as_restricted_as_their_namespace_asks() {
    for overlay in OVERLAYS {
        let all = manifests(overlay);
        let namespace = named(&all, "Namespace", "weir");
        let labels = &namespace["metadata"]["labels"];
        assert_eq!(labels["pod-security.kubernetes.io/enforce"], "restricted");
        for workload in workloads(&all) {
            let pod = &workload["spec"]["template"]["spec"];
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{overlay}");
            assert_eq!(
                pod["securityContext"]["seccompProfile"]["type"],
                "RuntimeDefault"
            );
            assert_eq!(pod["automountServiceAccountToken"], false, "{overlay}");
            for container in containers(workload) {
                let security = &container["securityContext"];
                assert_eq!(security["allowPrivilegeEscalation"], false, "{overlay}");
                assert_eq!(security["readOnlyRootFilesystem"], true, "{overlay}");
                assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]));
                assert!(
                    container.pointer("/resources/limits/memory").is_some(),
                    "{overlay}"
                );
                assert!(
                    container.pointer("/resources/limits/cpu").is_none(),
                    "{overlay}"
                );
            }
        }
    }
}

#[test]
fn nats_is_ready_with_its_copy_and_weir_waits_for_it() {
    for overlay in ["", "overlays/prod", "overlays/all"] {
        let all = manifests(overlay);
        let container = &containers(named(&all, "StatefulSet", "nats"))[0];
        let probe = |name: &str| text(container, &format!("/{name}/httpGet/path")).to_owned();
        // Without a query it asks for the copies of all streams too. Later a server that falls behind stays.
        assert_eq!(probe("startupProbe"), "/healthz", "{overlay}");
        assert_eq!(probe("readinessProbe"), "/healthz?js-server-only=true");
        assert_eq!(probe("livenessProbe"), "/healthz?js-enabled-only=true");
        let attempts = container.pointer("/startupProbe/failureThreshold").unwrap();
        let attempts = u32::try_from(attempts.as_u64().unwrap()).unwrap();
        let patience = secs(container, "/startupProbe/periodSeconds") * attempts;
        assert!(
            patience >= Duration::from_secs(3600),
            "{overlay}: {patience:?}"
        );

        let settings: toml::Table = settings(&all).parse().unwrap();
        let waits = settings["jetstream"]["startup_timeout"].as_str().unwrap();
        let waits = humantime::parse_duration(waits).unwrap();
        assert!(waits >= Duration::from_secs(600), "{overlay}: {waits:?}");
    }
}

#[test]
fn nats_accepts_its_configuration() {
    for overlay in ["", "overlays/prod"] {
        let all = manifests(overlay);
        let configs = of_kind(&all, "ConfigMap");
        let config = configs
            .iter()
            .map(|made| text(made, "/data/nats.conf"))
            .find(|text| !text.is_empty())
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("nats.conf");
        fs::write(&file, config).unwrap();
        let done = Command::new(tool("nats-server"))
            .arg("--config")
            .arg(&file)
            .arg("-t")
            .env("POD_NAME", "nats-0")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{overlay}: {said}");
        // A server's store and what else is on its volume have to fit.
        let size =
            |text: &str, unit: &str| text.strip_suffix(unit).unwrap().parse::<u64>().unwrap();
        let store = config
            .lines()
            .find_map(|line| line.trim().strip_prefix("max_file_store: "));
        let claim = named(&all, "StatefulSet", "nats");
        let claim = text(
            claim,
            "/spec/volumeClaimTemplates/0/spec/resources/requests/storage",
        );
        assert!(
            size(store.unwrap(), "GB") * 10 <= size(claim, "Gi") * 9,
            "{overlay}"
        );
    }
}

//! Dockerfile and docker-compose.yml, as far as they can be checked without an engine; `tests/compose.sh` runs them.

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::Value;

use crate::{output, support::server::binary};

fn project(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    path.to_str().unwrap().to_owned()
}

/// docker-compose.yml with its anchors resolved.
fn compose() -> Value {
    let program = "import json, sys, ruamel.yaml\n\
        made = ruamel.yaml.YAML(typ='safe').load(open(sys.argv[1]))\n\
        print(json.dumps(made))";
    let file = project("docker-compose.yml");
    serde_json::from_str(&output("python", &["-c", program, &file])).unwrap()
}

fn services(compose: &Value) -> impl Iterator<Item = (&String, &Value)> {
    compose["services"].as_object().unwrap().iter()
}

/// The value of `ARG NAME=value` in the Dockerfile.
fn argument(name: &str) -> String {
    let text = fs::read_to_string(project("Dockerfile")).unwrap();
    let found = text.lines().find_map(|line| {
        line.strip_prefix("ARG ")?
            .strip_prefix(name)?
            .strip_prefix('=')
    });
    found.unwrap_or_else(|| panic!("no {name}")).to_owned()
}

#[test]
fn the_dockerfile_is_sound() {
    output("hadolint", &[&project("Dockerfile")]);
    assert_eq!(argument("VERSION"), env!("CARGO_PKG_VERSION"));
    let number =
        |text: &str| -> Vec<u32> { text.split('.').map(|part| part.parse().unwrap()).collect() };
    let oldest = number(env!("CARGO_PKG_RUST_VERSION"));
    assert!(number(&argument("RUST_VERSION")) >= oldest);
    // The stages agree on the system, so on its libc.
    assert_eq!(argument("DEBIAN"), "bookworm");
    assert!(argument("RUNTIME").contains("debian12"));
}

#[test]
fn the_build_sees_what_it_copies() {
    let ignored = fs::read_to_string(project(".dockerignore")).unwrap();
    let kept: Vec<_> = ignored
        .lines()
        .filter_map(|line| line.strip_prefix('!'))
        .collect();
    let text = fs::read_to_string(project("Dockerfile")).unwrap();
    let copied = text
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|line| !line.starts_with("--from"))
        .flat_map(|line| {
            let mut words: Vec<_> = line.split(' ').collect();
            words.pop();
            words
        });
    let copied: Vec<_> = copied.collect();
    assert!(copied.len() > 4, "{copied:?}");
    for path in copied {
        assert!(kept.contains(&path), "{path} is not in the build's context");
        assert!(Path::new(&project(path)).exists(), "{path}");
    }
}

#[test]
fn the_compose_file_is_valid() {
    let file = project("docker-compose.yml");
    output(
        "python",
        &[
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            &file,
        ],
    );
}

#[test]
fn nothing_is_reachable_from_outside_and_images_have_tags() {
    let compose = compose();
    for (name, service) in services(&compose) {
        let none = Vec::new();
        for port in service["ports"].as_array().unwrap_or(&none) {
            assert!(
                port.as_str().unwrap().starts_with("127.0.0.1:"),
                "{name}: {port}"
            );
        }
        let image = service["image"].as_str().unwrap();
        let tag = image.rsplit_once(':').unwrap().1;
        assert_ne!(tag, "latest", "{name}");
        if image.starts_with("weir:") {
            assert_eq!(tag, env!("CARGO_PKG_VERSION"), "{name}");
            assert_eq!(service["read_only"], true, "{name}");
        }
        assert_eq!(service["cap_drop"], serde_json::json!(["ALL"]), "{name}");
        for volume in service["volumes"].as_array().unwrap_or(&none) {
            let source = volume.as_str().unwrap().split(':').next().unwrap();
            match source.strip_prefix("./") {
                Some(path) => assert!(Path::new(&project(path)).exists(), "{name}: {path}"),
                None => assert!(compose["volumes"].get(source).is_some(), "{name}: {source}"),
            }
        }
    }
}

#[test]
fn the_binary_accepts_the_settings_of_image_and_compose() {
    let compose = compose();
    let mut servers = 0;
    for (name, service) in services(&compose) {
        let is_server =
            service["command"].is_null() && service["image"].as_str().unwrap().starts_with("weir:");
        if !is_server {
            continue;
        }
        servers += 1;
        let environment = service["environment"].as_object().unwrap();
        let mut check = Command::new(binary());
        check.args(["config", "check", "--config", &project("docker/weir.toml")]);
        for (key, value) in environment {
            check.env(key, value.as_str().unwrap());
        }
        let done = check.output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && said.is_empty(), "{name}: {said}");

        let duration = |value: &Value| humantime::parse_duration(value.as_str().unwrap()).unwrap();
        let drain = duration(&environment["WEIR__DRAIN__TIMEOUT"]);
        let grace = duration(&service["stop_grace_period"]);
        assert!(drain + Duration::from_secs(15) <= grace, "{name}");
    }
    assert_eq!(servers, 3);
    let load = compose["services"]["load"]["command"].as_str().unwrap();
    let line = ["weir"].into_iter().chain(load.split_whitespace());
    let parsed = <weir::cli::Cli as clap::Parser>::try_parse_from(line);
    assert!(parsed.is_ok(), "{:?}", parsed.err());
}

#[test]
fn nats_accepts_the_configuration_of_compose() {
    let said = output(
        "nats-server",
        &["--config", &project("docker/nats.conf"), "-t"],
    );
    assert!(said.contains("valid"), "{said}");
}

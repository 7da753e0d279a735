//! Where the foreign tools are that `make tools` fetched.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The program `name` of `.tools/bin`: `nats-server`, `prometheus`, `promtool`, `grpcurl`, `hadolint`, `python` and `node` with
/// the clients' packages on their path, the Go clients `go-client`, `go-chat` and the other examples, `kustomize`, and
/// `kubernetes-oldest` and `kubernetes-newest`, which check manifests with the schemas in `.tools/crds`, and `ip`. The Python stubs of
/// every proto can be imported.
///
/// # Panics
/// With the reason in one sentence, when the tool could not be had.
#[track_caller]
pub(crate) fn tool(name: &str) -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools");
    // Some steps fetch something other than one program of their own name.
    let steps: &[&str] = match name {
        "promtool" => &["prometheus"],
        "python" => &["python", "stubs"],
        "hadolint" => &["python"],
        "kubernetes-oldest" | "kubernetes-newest" => &["kubernetes"],
        name if name.starts_with("go-") => &["go"],
        other => &[other],
    };
    for step in steps {
        if let Ok(reason) = fs::read_to_string(tools.join("missing").join(step)) {
            panic!("{}", reason.trim());
        }
    }
    let program = tools.join("bin").join(name);
    assert!(
        program.exists(),
        "{name} is not there yet: run `make tools` first."
    );
    program
}

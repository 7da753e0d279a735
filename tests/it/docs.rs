//! What the documentation says about the wire is what the descriptors say.

use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::{Code, Request};

use crate::support::{TestServer, soon};

/// Every method of the project's own protos, with its kind.
fn methods() -> BTreeMap<String, &'static str> {
    let set = FileDescriptorSet::decode(weir::proto::DESCRIPTORS).unwrap();
    let mut methods = BTreeMap::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let prefix = match file.package() {
                    "" => String::new(),
                    package => format!("{package}."),
                };
                let kind = match (method.client_streaming(), method.server_streaming()) {
                    (false, false) => "unary",
                    (false, true) => "server stream",
                    (true, false) => "client stream",
                    (true, true) => "bidirectional",
                };
                methods.insert(
                    format!("{prefix}{}/{}", service.name(), method.name()),
                    kind,
                );
            }
        }
    }
    methods
}

#[test]
fn the_method_table_names_every_method_and_its_kind() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/methods.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let name = cells.first()?.strip_prefix('`')?.strip_suffix('`')?;
        assert_eq!(cells.len(), 3, "{line}");
        assert!(!cells[2].is_empty(), "{name} has no guarantee");
        Some((name.to_owned(), cells[1].to_owned()))
    });
    let mut table = BTreeMap::new();
    for (name, kind) in rows {
        assert!(
            table.insert(name.clone(), kind).is_none(),
            "{name} stands twice"
        );
    }
    let described = methods()
        .into_iter()
        .map(|(name, kind)| (name, kind.to_owned()))
        .collect();
    assert_eq!(table, described);
}

/// Health is reported for every service and for nothing else.
#[test]
fn every_service_reports_its_health() {
    let mut services: Vec<_> = methods()
        .keys()
        .filter_map(|method| method.split('/').next().map(str::to_owned))
        .collect();
    services.dedup();
    let mut reported: Vec<_> = weir::services::SERVICE_NAMES
        .iter()
        .map(ToString::to_string)
        .collect();
    reported.sort();
    services.sort();
    assert_eq!(services, reported);
}

/// Whatever a method says to an empty message, it does not say that it is not there.
#[tokio::test]
async fn every_method_is_served() {
    let server = TestServer::start().await;
    for method in methods().into_keys() {
        let mut client = tonic::client::Grpc::new(server.channel().await);
        client.ready().await.unwrap();
        let path = format!("/{method}").parse().unwrap();
        let request = Request::new(futures::stream::iter([()]));
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let answer = soon(&method, client.streaming(request, path, codec)).await;
        let code = answer.err().map(|status| status.code());
        assert_ne!(code, Some(Code::Unimplemented), "{method}");
    }
}

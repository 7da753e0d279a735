//! `weir instances`: which instances there are.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use clap::Args;
use serde::Serialize;
use tonic::Request;

use super::{
    Failure, Target,
    format::{plain, to_seconds},
};
use crate::proto::weir::v1::{
    Instance, InstanceState, ListInstancesRequest, instances_client::InstancesClient,
};

/// The longest time the answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

const AFTER_HELP: &str = "\
Examples:
  weir instances                             one line each: name, state, version, start, streams, addresses
  weir instances --json | jq -r .instance_id
  weir instances --addr http://weir:50051

All instances on one NATS are listed, whichever is asked. One that does not answer within 300 ms is not there.";

/// List the instances of the service.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct InstancesArgs {
    /// Print a JSON object for each.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Target,
}

/// An instance as one line of JSON.
#[derive(Serialize)]
struct JsonInstance<'a> {
    instance_id: &'a str,
    state: &'static str,
    reasons: &'a [String],
    version: &'a str,
    /// RFC 3339, UTC.
    started: String,
    active_streams: i64,
    grpc_addresses: &'a [String],
}

pub(super) async fn run(args: InstancesArgs) -> Result<(), Failure> {
    let client = args.server.connect().await?;
    let mut request = Request::new(ListInstancesRequest {});
    request.set_timeout(TIMEOUT);
    let listed = InstancesClient::new(client.channel())
        .list_instances(request)
        .await;
    let listed = listed.map_err(|status| Failure::status(&args.server.addr, &status))?;
    for instance in &listed.into_inner().instances {
        let line = match args.json {
            true => json(instance).map_err(|error| Failure::failed(error.to_string()))?,
            false => columns(instance),
        };
        writeln!(io::stdout(), "{line}")?;
    }
    Ok(())
}

fn json(instance: &Instance) -> serde_json::Result<String> {
    serde_json::to_string(&JsonInstance {
        instance_id: &instance.instance_id,
        state: state(instance),
        reasons: &instance.reasons,
        version: &instance.version,
        started: to_seconds(instance.started),
        active_streams: instance.active_streams,
        grpc_addresses: &instance.grpc_addresses,
    })
}

fn columns(instance: &Instance) -> String {
    format!(
        "{}\t{}\t{}\t{}\t{}\t{}",
        plain(&instance.instance_id),
        state(instance),
        plain(&instance.version),
        to_seconds(instance.started),
        instance.active_streams,
        plain(&instance.grpc_addresses.join(",")),
    )
}

fn state(instance: &Instance) -> &'static str {
    match instance.state() {
        InstanceState::Ready => "ready",
        InstanceState::NotReady => "not-ready",
        InstanceState::Draining => "draining",
        InstanceState::Unspecified => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;

    fn instance() -> Instance {
        Instance {
            instance_id: "one\ttwo".into(),
            version: "0.1.0".into(),
            started: Some(Timestamp {
                seconds: 1_700_000_000,
                nanos: 5,
            }),
            state: InstanceState::NotReady.into(),
            reasons: vec!["recovering".into()],
            active_streams: 3,
            grpc_addresses: vec!["127.0.0.1:1".into(), "127.0.0.1:2".into()],
        }
    }

    #[test]
    fn columns_are_six_whatever_the_name() {
        assert_eq!(
            columns(&instance()),
            "one\\ttwo\tnot-ready\t0.1.0\t2023-11-14T22:13:20Z\t3\t127.0.0.1:1,127.0.0.1:2"
        );
    }

    #[test]
    fn json_has_every_field_and_stays_on_one_line() {
        let expected = r#"{"instance_id":"one\ttwo","state":"not-ready","reasons":["recovering"],"version":"0.1.0","started":"2023-11-14T22:13:20Z","active_streams":3,"grpc_addresses":["127.0.0.1:1","127.0.0.1:2"]}"#;
        assert_eq!(json(&instance()).unwrap(), expected);
    }
}

//! `weir health`: whether a server serves.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use clap::Args;
use tonic::{Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use super::{Failure, Target, exit, notices};
use crate::client::{Client, Sequenced, Subscription};

const AFTER_HELP: &str = "\
Examples:
  weir health
  weir health --addr http://weir:50051 --timeout 1s
  weir health --service chat.ChatService
  weir health --watch

Exit codes of this command: 0 serving, 1 not serving, 3 no answer, 4 the server knows no such service.
In a container: HEALTHCHECK CMD [\"weir\", \"health\"]";

/// Ask a server for its health (grpc.health.v1).
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct HealthArgs {
    /// Fully qualified name of one service [default: the whole server].
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    service: String,
    /// Print every change until interrupted.
    #[arg(long)]
    watch: bool,
    /// Longest time to wait for the answer; --watch waits for ever.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    server: Target,
}

impl Sequenced for HealthCheckResponse {
    /// A state, not a record.
    fn sequence(&self) -> u64 {
        0
    }
}

pub(super) async fn run(args: HealthArgs) -> Result<(), Failure> {
    let client = Client::connect_lazy(&args.server.addr)?;
    match args.watch {
        true => watch(&args, &client).await,
        false => check(&args, &client).await,
    }
}

async fn check(args: &HealthArgs, client: &Client) -> Result<(), Failure> {
    let mut health = HealthClient::new(client.channel());
    let answer = tokio::time::timeout(args.timeout, health.check(request(args))).await;
    let late = || Status::deadline_exceeded(format!("no answer within {:?}", args.timeout));
    let answer = answer.unwrap_or_else(|_| Err(late()));
    let status = answer.map_err(|status| Failure::status(&args.server.addr, &status))?;
    let status = status.into_inner().status();
    writeln!(io::stdout(), "{}", status.as_str_name())?;
    match status {
        ServingStatus::Serving => Ok(()),
        ServingStatus::Unknown | ServingStatus::NotServing | ServingStatus::ServiceUnknown => {
            Err(Failure::silent(exit::FAILED))
        }
    }
}

/// Prints every change; a broken connection is repaired.
async fn watch(args: &HealthArgs, client: &Client) -> Result<(), Failure> {
    let mut states =
        states(args, client.channel(), client).with_observer(notices::observer(&args.server.addr));
    let mut printed = None;
    while let Some(state) = states.next().await {
        let state = state
            .map_err(|status| Failure::status(&args.server.addr, &status))?
            .status();
        if printed.replace(state) != Some(state) {
            writeln!(io::stdout(), "{}", state.as_str_name())?;
        }
    }
    Ok(())
}

fn states(
    args: &HealthArgs,
    channel: Channel,
    client: &Client,
) -> Subscription<HealthCheckResponse> {
    let (health, request) = (HealthClient::new(channel), request(args));
    client.resumable(Subscription::new(None, move |_| {
        let (mut health, request) = (health.clone(), request.clone());
        async move { health.watch(request).await }
    }))
}

fn request(args: &HealthArgs) -> HealthCheckRequest {
    HealthCheckRequest {
        service: args.service.clone(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use tonic::transport::{Server, server::TcpIncoming};

    use super::*;
    use crate::cli::Cli;

    async fn code(args: &[&str]) -> u8 {
        let args = ["weir", "health"].iter().chain(args);
        let outcome = crate::cli::run(Cli::try_parse_from(args).unwrap()).await;
        outcome.map_or_else(|failure| failure.code(), |()| exit::OK)
    }

    #[tokio::test]
    async fn the_exit_code_is_the_health() {
        let (reporter, service) = tonic_health::server::health_reporter();
        reporter
            .set_service_status("good", tonic_health::ServingStatus::Serving)
            .await;
        reporter
            .set_service_status("bad", tonic_health::ServingStatus::NotServing)
            .await;
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let addr = format!("http://{}", incoming.local_addr().unwrap());
        tokio::spawn(
            Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        for (service, expected) in [("good", 0), ("bad", 1), ("absent", 4)] {
            assert_eq!(
                code(&["--addr", &addr, "--service", service]).await,
                expected,
                "{service}"
            );
        }
    }

    #[tokio::test]
    async fn no_answer_is_three() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = format!("http://{}", listener.local_addr().unwrap());
        assert_eq!(
            code(&["--addr", &addr, "--timeout", "10ms"]).await,
            exit::UNAVAILABLE
        );
        drop(listener);
        assert_eq!(code(&["--addr", &addr]).await, exit::UNAVAILABLE);
    }
}

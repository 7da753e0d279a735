//! The three `helloworld` services.

use std::time::Duration;

use futures::stream;
use tokio::time::{Interval, interval};
use tonic::{Request, Response, Status, Streaming, service::Routes};

use super::{Core, Responses, incoming::Incoming, message_limit};
use crate::{
    call::into_status,
    core::Error,
    proto::helloworld::{
        AllStreamReq, AllStreamResp, ClientStreamReq, ClientStreamResp, ServerStreamReq,
        ServerStreamResp,
        all_stream_server_server::{AllStreamServer, AllStreamServerServer},
        client_stream_server_server::{ClientStreamServer, ClientStreamServerServer},
        server_stream_server_server::{ServerStreamServer, ServerStreamServerServer},
    },
};

/// How often `ServerStream` repeats its request, and how far `AllStream` counts.
const TIMES: u32 = 5;
/// How long `AllStream` waits between two numbers.
const PAUSE: Duration = Duration::from_secs(1);
/// Bytes of a message beside its text: tags and length.
const OVERHEAD_BYTES: usize = 16;

/// Adds the three services.
pub(super) fn add(routes: Routes, core: &Core) -> Routes {
    let limit = message_limit(&core.limits);
    let hello = Hello { limit };
    routes
        .add_service(ServerStreamServerServer::new(hello).max_decoding_message_size(limit))
        .add_service(ClientStreamServerServer::new(hello).max_decoding_message_size(limit))
        .add_service(AllStreamServerServer::new(hello).max_decoding_message_size(limit))
}

#[derive(Clone, Copy)]
struct Hello {
    /// The largest message, in bytes.
    limit: usize,
}

#[tonic::async_trait]
impl ServerStreamServer for Hello {
    type ServerStreamStream = Responses<ServerStreamResp>;

    async fn server_stream(
        &self,
        request: Request<ServerStreamReq>,
    ) -> Result<Response<Self::ServerStreamStream>, Status> {
        let data = request.into_inner().data;
        let responses = (0..TIMES).map(move |_| Ok(ServerStreamResp { data: data.clone() }));
        Ok(Response::new(Box::pin(stream::iter(responses))))
    }
}

#[tonic::async_trait]
impl ClientStreamServer for Hello {
    async fn client_stream(
        &self,
        request: Request<Streaming<ClientStreamReq>>,
    ) -> Result<Response<ClientStreamResp>, Status> {
        let mut requests = Incoming::new(request.into_inner());
        let mut parts = Vec::new();
        let mut bytes = OVERHEAD_BYTES;
        while let Some(batch) = requests.next_batch().await? {
            for ClientStreamReq { data } in batch {
                bytes += data.len() + 1;
                parts.push(data);
            }
            if bytes > self.limit {
                return Err(into_status(Error::Limit {
                    what: "bytes of the answer",
                    limit: self.limit,
                }));
            }
        }
        let data = parts.join(",");
        Ok(Response::new(ClientStreamResp { data }))
    }
}

#[tonic::async_trait]
impl AllStreamServer for Hello {
    type AllStreamStream = Responses<AllStreamResp>;

    async fn all_stream(
        &self,
        request: Request<Streaming<AllStreamReq>>,
    ) -> Result<Response<Self::AllStreamStream>, Status> {
        let counting = Counting {
            requests: Incoming::new(request.into_inner()),
            is_open: true,
            next: 0,
            ticks: interval(PAUSE),
        };
        let responses = stream::unfold(counting, |mut counting| async move {
            let next = counting.next().await?;
            Some((next, counting))
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

/// One `AllStream`: it counts while it reads.
struct Counting {
    requests: Incoming<AllStreamReq>,
    is_open: bool,
    next: u32,
    ticks: Interval,
}

impl Counting {
    /// The next number; none when both sides are done.
    async fn next(&mut self) -> Option<Result<AllStreamResp, Status>> {
        while self.is_open || self.next < TIMES {
            tokio::select! {
                _ = self.ticks.tick(), if self.next < TIMES => {
                    let data = self.next.to_string();
                    self.next += 1;
                    return Some(Ok(AllStreamResp { data }));
                }
                batch = self.requests.next_batch(), if self.is_open => match batch {
                    Ok(Some(batch)) => tracing::debug!(messages = batch.len(), "read"),
                    Ok(None) => self.is_open = false,
                    Err(status) => {
                        (self.is_open, self.next) = (false, TIMES);
                        return Some(Err(status));
                    }
                }
            }
        }
        None
    }
}

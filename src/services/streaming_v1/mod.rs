//! `streaming.v1.StreamingService`: one file for each of its concerns.

mod batch;
mod chat;
mod documents;
mod events;
mod files;
mod live_data;
mod notifications;
mod telemetry;

use tonic::{Request, Response, Status, Streaming};

use super::{Core, ENVELOPE_BYTES, Responses, live::WithLive, message_limit};
use crate::proto::streaming::v1::{
    BatchProcessingResult, ChatMessage, CollaborationEvent, DataInput, DataRecord,
    DownloadFileRequest, FileChunk, MetricData, MetricsCollectionResult, Notification,
    ProcessingResult, StreamUserEventsRequest, SubscribeRequest, UploadFileResponse, UserEvent,
    streaming_service_server::{StreamingService, StreamingServiceServer},
};

/// The service's full name.
const SERVICE: &str = "streaming.v1.StreamingService";

/// The service with its hot subscriptions.
pub(super) fn routes(core: &Core) -> WithLive<StreamingServiceServer<V1>> {
    let limit = message_limit(&core.limits);
    let generated = StreamingServiceServer::new(V1 { core: core.clone() })
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit.saturating_add(ENVELOPE_BYTES));
    let with_live = WithLive::new(generated, limit, core.metrics.clone());
    let with_live = events::add(with_live, core);
    let with_live = files::add(with_live, core);
    notifications::add(with_live, core)
}

/// A count as the wire has it.
fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The service.
pub(super) struct V1 {
    core: Core,
}

#[tonic::async_trait]
impl StreamingService for V1 {
    type StreamUserEventsStream = Responses<UserEvent>;
    type DownloadFileStream = Responses<FileChunk>;
    type SubscribeToNotificationsStream = Responses<Notification>;
    type ChatStream = Responses<ChatMessage>;
    type CollaborateStream = Responses<CollaborationEvent>;
    type ProcessLiveDataStream = Responses<ProcessingResult>;

    /// Never called: [`routes`] serves this method from shared bytes.
    async fn stream_user_events(
        &self,
        _: Request<StreamUserEventsRequest>,
    ) -> Result<Response<Self::StreamUserEventsStream>, Status> {
        Err(Status::unimplemented("served as a live subscription"))
    }

    /// Never called: [`routes`] serves this method from frames of its own.
    async fn download_file(
        &self,
        _: Request<DownloadFileRequest>,
    ) -> Result<Response<Self::DownloadFileStream>, Status> {
        Err(Status::unimplemented("served as frames"))
    }

    /// Never called: [`routes`] serves this method from frames of its own.
    async fn subscribe_to_notifications(
        &self,
        _: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeToNotificationsStream>, Status> {
        Err(Status::unimplemented("served as a live subscription"))
    }

    async fn upload_file(
        &self,
        request: Request<Streaming<FileChunk>>,
    ) -> Result<Response<UploadFileResponse>, Status> {
        files::upload(&self.core, request).await
    }

    async fn process_data_batch(
        &self,
        request: Request<Streaming<DataRecord>>,
    ) -> Result<Response<BatchProcessingResult>, Status> {
        batch::process(&self.core, request).await
    }

    async fn collect_metrics(
        &self,
        request: Request<Streaming<MetricData>>,
    ) -> Result<Response<MetricsCollectionResult>, Status> {
        telemetry::collect(&self.core, request).await
    }

    async fn chat(
        &self,
        request: Request<Streaming<ChatMessage>>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        chat::chat(&self.core, request)
    }

    async fn collaborate(
        &self,
        request: Request<Streaming<CollaborationEvent>>,
    ) -> Result<Response<Self::CollaborateStream>, Status> {
        documents::collaborate(&self.core, request)
    }

    async fn process_live_data(
        &self,
        request: Request<Streaming<DataInput>>,
    ) -> Result<Response<Self::ProcessLiveDataStream>, Status> {
        live_data::process(&self.core, request)
    }
}

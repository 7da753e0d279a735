//! A plain byte stream in both directions: chunks are decoded and dropped, or made of one buffer. Nothing is stored.

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use tonic::{Request, Response, Status, Streaming};
use weir::proto::streaming::v1::{
    BatchProcessingResult, ChatMessage, CollaborationEvent, DataInput, DataRecord,
    DownloadFileRequest, FileChunk, FileMetadata, MetricData, MetricsCollectionResult,
    Notification, ProcessingResult, StreamUserEventsRequest, SubscribeRequest, UploadFileResponse,
    UserEvent, file_chunk::Data, streaming_service_server::StreamingService,
};

use super::{BoxStream, Reply};

const CHUNK_BYTES: i64 = 64 * 1024;

/// The service, as generated code wants it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Files;

fn elsewhere<T>() -> Reply<T> {
    Err(Status::unimplemented("the baseline only moves bytes"))
}

#[tonic::async_trait]
impl StreamingService for Files {
    type StreamUserEventsStream = BoxStream<UserEvent>;
    type DownloadFileStream = BoxStream<FileChunk>;
    type SubscribeToNotificationsStream = BoxStream<Notification>;
    type ChatStream = BoxStream<ChatMessage>;
    type CollaborateStream = BoxStream<CollaborationEvent>;
    type ProcessLiveDataStream = BoxStream<ProcessingResult>;

    /// `length` bytes, whatever file is asked for.
    async fn download_file(
        &self,
        request: Request<DownloadFileRequest>,
    ) -> Reply<BoxStream<FileChunk>> {
        let length = request.into_inner().length;
        let buffer = Bytes::from(vec![7; usize::try_from(CHUNK_BYTES).unwrap_or_default()]);
        let metadata = FileChunk {
            data: Some(Data::Metadata(FileMetadata {
                total_size: length,
                ..FileMetadata::default()
            })),
            ..FileChunk::default()
        };
        let chunks = (0..length / CHUNK_BYTES).map(move |index| FileChunk {
            data: Some(Data::Chunk(buffer.clone())),
            offset: index * CHUNK_BYTES,
            size: CHUNK_BYTES,
        });
        let all = stream::iter(std::iter::once(metadata).chain(chunks)).map(Ok);
        Ok(Response::new(Box::pin(all)))
    }

    async fn upload_file(
        &self,
        request: Request<Streaming<FileChunk>>,
    ) -> Reply<UploadFileResponse> {
        let mut chunks = request.into_inner();
        let mut bytes_uploaded = 0;
        while let Some(chunk) = chunks.message().await? {
            if let Some(Data::Chunk(bytes)) = chunk.data {
                bytes_uploaded += i64::try_from(bytes.len()).unwrap_or(i64::MAX);
            }
        }
        Ok(Response::new(UploadFileResponse {
            file_id: "none".into(),
            bytes_uploaded,
            ..UploadFileResponse::default()
        }))
    }

    async fn stream_user_events(
        &self,
        _: Request<StreamUserEventsRequest>,
    ) -> Reply<BoxStream<UserEvent>> {
        elsewhere()
    }

    async fn subscribe_to_notifications(
        &self,
        _: Request<SubscribeRequest>,
    ) -> Reply<BoxStream<Notification>> {
        elsewhere()
    }

    async fn process_data_batch(
        &self,
        _: Request<Streaming<DataRecord>>,
    ) -> Reply<BatchProcessingResult> {
        elsewhere()
    }

    async fn collect_metrics(
        &self,
        _: Request<Streaming<MetricData>>,
    ) -> Reply<MetricsCollectionResult> {
        elsewhere()
    }

    async fn chat(&self, _: Request<Streaming<ChatMessage>>) -> Reply<BoxStream<ChatMessage>> {
        elsewhere()
    }

    async fn collaborate(
        &self,
        _: Request<Streaming<CollaborationEvent>>,
    ) -> Reply<BoxStream<CollaborationEvent>> {
        elsewhere()
    }

    async fn process_live_data(
        &self,
        _: Request<Streaming<DataInput>>,
    ) -> Reply<BoxStream<ProcessingResult>> {
        elsewhere()
    }
}

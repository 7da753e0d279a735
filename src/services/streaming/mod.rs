//! `streaming.DataService`.

mod chat;
mod data;
mod files;

use tonic::{Request, Response, Status, Streaming};

use super::{Core, ENVELOPE_BYTES, Responses, message_limit};
use crate::proto::streaming::{
    ChatMessage, StreamRequest, StreamResponse, UploadRequest, UploadResponse,
    data_service_server::{DataService, DataServiceServer},
};

/// The service's full name.
const SERVICE: &str = "streaming.DataService";

/// The service.
pub(super) fn service(core: &Core) -> DataServiceServer<Data> {
    let limit = message_limit(&core.limits);
    DataServiceServer::new(Data { core: core.clone() })
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit.saturating_add(ENVELOPE_BYTES))
}

/// The service.
pub(super) struct Data {
    core: Core,
}

#[tonic::async_trait]
impl DataService for Data {
    type SubscribeDataStream = Responses<StreamResponse>;
    type ChatStream = Responses<ChatMessage>;

    async fn get_data(
        &self,
        request: Request<StreamRequest>,
    ) -> Result<Response<StreamResponse>, Status> {
        data::get(&self.core, request).await
    }

    async fn subscribe_data(
        &self,
        request: Request<StreamRequest>,
    ) -> Result<Response<Self::SubscribeDataStream>, Status> {
        data::subscribe(&self.core, request).await
    }

    async fn upload_file(
        &self,
        request: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<UploadResponse>, Status> {
        files::upload(&self.core, request).await
    }

    async fn chat(
        &self,
        request: Request<Streaming<ChatMessage>>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        chat::chat(&self.core, request)
    }
}

//! `FeedbackService`, `weir.v1.FeedbackDesk` and `weir.v1.Feedback`.

mod consumer;
mod conversation;
mod convert;
mod desk;

use tonic::{Request, Response, Status, Streaming, service::Routes};

use self::conversation::Conversation;
use super::{
    Core, ENVELOPE_BYTES, Responses,
    duplex::{duplex, resume_position},
    message_limit,
};
use crate::{
    call::Call,
    proto::feedback::{
        FeedbackRequest, FeedbackResponse,
        feedback_service_server::{FeedbackService, FeedbackServiceServer},
    },
};

/// Adds the three services.
pub(super) fn add(routes: Routes, core: &Core) -> Routes {
    let limit = message_limit(&core.limits);
    let service = FeedbackServiceServer::new(Service { core: core.clone() })
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit.saturating_add(ENVELOPE_BYTES));
    routes
        .add_service(service)
        .add_service(desk::routes(core))
        .add_service(consumer::service(core))
}

struct Service {
    core: Core,
}

#[tonic::async_trait]
impl FeedbackService for Service {
    type SendFeedbackStream = Responses<FeedbackResponse>;

    async fn send_feedback(
        &self,
        request: Request<Streaming<FeedbackRequest>>,
    ) -> Result<Response<Self::SendFeedbackStream>, Status> {
        let resume = resume_position(&request)?;
        let call = request.extensions().get::<Call>().cloned();
        let conversation = Conversation::new(&self.core, resume, call);
        Ok(Response::new(duplex(request.into_inner(), conversation)))
    }
}

//! A publisher: one `UploadMessages` stream.

use std::{future::poll_fn, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::{Buf as _, Bytes};
use h2::{SendStream, client::ResponseFuture, client::SendRequest};
use prost::Message as _;
use tokio::time::timeout;

use super::{
    grpc::{self, Target},
    message::Template,
};
use crate::proto::chat::UploadResponse;

/// How long the answer to an upload may take once everything is sent.
const ANSWER: Duration = Duration::from_secs(120);

/// An open upload.
#[derive(Debug)]
pub(super) struct Upload {
    body: SendStream<Bytes>,
    response: Option<ResponseFuture>,
    templates: Vec<Template>,
    sent: u64,
    /// Keeps the connection open.
    _sender: SendRequest<Bytes>,
}

impl Upload {
    /// Opens the call on a connection of its own; messages take the templates in turn.
    pub(super) async fn open(target: &Target, templates: Vec<Template>) -> Result<Self> {
        ensure!(!templates.is_empty(), "an upload needs a message");
        let mut sender = target.connect_driven().await?;
        grpc::ready(&mut sender).await?;
        let (response, body) = sender.send_request(target.request("UploadMessages")?, false)?;
        Ok(Self {
            body,
            response: Some(response),
            templates,
            sent: 0,
            _sender: sender,
        })
    }

    /// Messages sent so far; the next one carries this number.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends so many messages together, as far as the server's windows let them.
    pub(super) async fn send(&mut self, messages: u64) -> Result<()> {
        let mut frames = Vec::new();
        for stamp in self.sent..self.sent + messages {
            let template = &self.templates[stamp as usize % self.templates.len()];
            template.append(stamp, &mut frames);
        }
        self.sent += messages;
        match self.write(Bytes::from(frames)).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.refusal(error).await),
        }
    }

    async fn write(&mut self, mut frames: Bytes) -> Result<()> {
        while frames.has_remaining() {
            self.body.reserve_capacity(frames.len());
            let granted = timeout(grpc::PATIENCE, poll_fn(|cx| self.body.poll_capacity(cx)))
                .await
                .map_err(|_| anyhow!("the server does not read the upload"))?
                .context("the upload was closed")??;
            let portion = frames.split_to(granted.min(frames.len()));
            self.body.send_data(portion, false)?;
        }
        Ok(())
    }

    /// The server's own reason, if it gave one, for a stream that cannot be written.
    async fn refusal(&mut self, otherwise: anyhow::Error) -> anyhow::Error {
        let Some(response) = self.response.take() else {
            return otherwise;
        };
        match self.answer(response, Duration::from_secs(1)).await {
            Ok(_) => otherwise.context("UploadMessages ended early"),
            Err(error) => error.context("UploadMessages failed"),
        }
    }

    async fn answer(&self, response: ResponseFuture, patience: Duration) -> Result<UploadResponse> {
        let body = grpc::accepted(response, patience).await?;
        Ok(UploadResponse::decode(
            grpc::only_message(body, patience).await?,
        )?)
    }

    /// Ends the upload and checks that the server counts as many messages as were sent.
    pub(super) async fn finish(mut self) -> Result<()> {
        self.body.send_data(Bytes::new(), true)?;
        let response = self
            .response
            .take()
            .context("the upload has ended before")?;
        let response = self
            .answer(response, ANSWER)
            .await
            .context("UploadMessages failed")?;
        ensure!(
            u64::try_from(response.message_count).ok() == Some(self.sent),
            "{} messages were uploaded, but the server counts {}",
            self.sent,
            response.message_count
        );
        Ok(())
    }
}

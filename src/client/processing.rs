//! Batches, live data and telemetry: the processing calls of `streaming.v1.StreamingService`.

use futures::{Stream, stream};
use tonic::{Status, Streaming, transport::Channel};

use super::{
    Client, ENVELOPE_BYTES, MAX_MESSAGE_BYTES,
    chat::{UPLOAD_TIMEOUT, key_or_new, timed},
};
use crate::proto::streaming::v1::{
    BatchProcessingResult, DataInput, DataRecord, MetricData, MetricsCollectionResult,
    ProcessingResult, streaming_service_client::StreamingServiceClient,
};

impl Client {
    /// Sends telemetry and returns what became of it once everything accepted is durable. Failed tries are repeated as a
    /// whole; every sample without an idempotency key gets one, so none is stored or added to a counter twice. A try takes
    /// a minute at most.
    ///
    /// # Errors
    /// A permanent status, or the last one when the repetitions are used up: which samples are stored is then unknown.
    /// Refused samples are no error.
    ///
    /// # Cancellation
    /// Dropping the future leaves it unknown which samples are stored.
    pub async fn collect_all(
        &self,
        samples: Vec<MetricData>,
    ) -> Result<MetricsCollectionResult, Status> {
        let keyed = |sample: MetricData| MetricData {
            idempotency_key: key_or_new(&sample.idempotency_key),
            ..sample
        };
        let samples: Vec<_> = samples.into_iter().map(keyed).collect();
        let call = || {
            let (mut v1, request) = (
                self.streaming_v1(),
                timed(stream::iter(samples.clone()), UPLOAD_TIMEOUT),
            );
            async move { v1.collect_metrics(request).await }
        };
        Ok(self.publish_retry().run(call).await?.into_inner())
    }

    /// Processes a stream of records as one batch and returns its statistics once everything accepted is durable. A stream
    /// cannot be sent again, so nothing is repeated here; records with idempotency keys make it safe for the caller to.
    ///
    /// # Errors
    /// Any status; records sent before may be stored. Refused records are no error.
    ///
    /// # Cancellation
    /// Dropping the future leaves it unknown which records are stored.
    pub async fn process_batch(
        &self,
        records: impl Stream<Item = DataRecord> + Send + 'static,
    ) -> Result<BatchProcessingResult, Status> {
        let response = self.streaming_v1().process_data_batch(records).await?;
        Ok(response.into_inner())
    }

    /// Processes a stream of inputs: a result for each, in order. Windows and scores are those of this one stream, so a
    /// broken one is not continued; nothing is stored.
    ///
    /// # Errors
    /// The stream cannot be opened. What is wrong with an input is its result.
    ///
    /// # Cancellation
    /// Dropping the results ends the call.
    pub async fn process_live(
        &self,
        inputs: impl Stream<Item = DataInput> + Send + 'static,
    ) -> Result<Streaming<ProcessingResult>, Status> {
        let response = self.streaming_v1().process_live_data(inputs).await?;
        Ok(response.into_inner())
    }

    fn streaming_v1(&self) -> StreamingServiceClient<Channel> {
        StreamingServiceClient::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE_BYTES + ENVELOPE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

//! `ProcessLiveData`.

use std::{collections::VecDeque, convert::Infallible};

use tonic::{Request, Response, Status, Streaming};

use crate::{
    core::{
        Error, Name,
        processing::{Live, Processed, Refused},
    },
    proto::streaming::v1::{
        DataInput, ProcessedData, ProcessingError, ProcessingResult,
        processing_result::Result as Outcome,
    },
    services::{
        Core, Responses,
        duplex::{Duplex, duplex},
        points::{nanos, now, time},
    },
};

use super::signed;

pub(super) fn process(
    core: &Core,
    request: Request<Streaming<DataInput>>,
) -> Result<Response<Responses<ProcessingResult>>, Status> {
    let side = Side {
        live: Live::new(core.processing.clone()),
    };
    Ok(Response::new(duplex(request.into_inner(), side)))
}

/// One stream: every input has its result before the next batch is taken in. Nothing of it is stored.
struct Side {
    live: Live,
}

impl Duplex for Side {
    type In = DataInput;
    type Out = ProcessingResult;
    /// Nothing happens beside the inputs.
    type Event = Infallible;

    async fn take(
        &mut self,
        batch: Vec<DataInput>,
        out: &mut VecDeque<ProcessingResult>,
    ) -> Result<(), Status> {
        out.extend(batch.into_iter().map(|input| self.result(input)));
        Ok(())
    }

    async fn event(&mut self) -> Result<Infallible, Error> {
        std::future::pending().await
    }

    async fn handle(
        &mut self,
        event: Infallible,
        _: &mut VecDeque<ProcessingResult>,
    ) -> Result<(), Error> {
        match event {}
    }

    fn has_room(&self) -> bool {
        true
    }

    fn is_settled(&self) -> bool {
        true
    }
}

impl Side {
    fn result(&mut self, input: DataInput) -> ProcessingResult {
        let outcome = match self.processed(&input.series, &input) {
            Ok(processed) => Outcome::Processed(processed),
            Err(error) => Outcome::Error(error),
        };
        ProcessingResult {
            id: input.id,
            result: Some(outcome),
        }
    }

    fn processed(
        &mut self,
        series: &str,
        input: &DataInput,
    ) -> Result<ProcessedData, ProcessingError> {
        if !input.value.is_finite() {
            return Err(error("INVALID_VALUE", "value must be finite"));
        }
        Name::new(series).map_err(|why| error("INVALID_SERIES", format!("series {why}")))?;
        let time = input.timestamp.map_or_else(|| Some(now()), nanos);
        let time = time.ok_or_else(|| {
            error(
                "INVALID_TIMESTAMP",
                "timestamp must be a time from 1677 to 2262",
            )
        })?;
        let processed = self.live.add(series, time, input.value).map_err(refusal)?;
        Ok(shown(input, &processed))
    }
}

fn shown(input: &DataInput, processed: &Processed) -> ProcessedData {
    let window = &processed.window;
    ProcessedData {
        series: input.series.clone(),
        value: input.value,
        window_start: Some(time(window.start)),
        window_end: Some(time(window.end)),
        count: signed(window.moments.count()),
        mean: window.moments.mean(),
        min: window.moments.min(),
        max: window.moments.max(),
        stddev: window.moments.stddev(),
        anomaly_score: processed.score,
        is_anomaly: processed.is_anomaly,
    }
}

fn refusal(refused: Refused) -> ProcessingError {
    let code = match refused {
        Refused::TooLate(_) => "TOO_LATE",
        Refused::TooManySeries { .. } => "TOO_MANY_SERIES",
    };
    error(code, refused.to_string())
}

fn error(code: &str, message: impl Into<String>) -> ProcessingError {
    ProcessingError {
        code: code.into(),
        message: message.into(),
    }
}

//! `weir bench files`: how fast one stream carries a file up and down, beside a server that stores nothing.

use std::{
    future::poll_fn,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::{Buf as _, Bytes, BytesMut};
use h2::client::SendRequest;
use prost::Message;
use serde::Serialize;
use tokio::time::timeout;

use super::{
    args::FilesArgs,
    frame::PREFIX_BYTES,
    grpc::{self, Target},
    report::{self, Table, Verdict},
};
use crate::proto::{
    streaming::v1::{
        DownloadFileRequest, FileChunk, FileMetadata, UploadFileResponse, file_chunk::Data,
    },
    weir::v1::DeleteFileRequest,
};

const CHUNK_BYTES: usize = 64 * 1024;
/// How long a transfer may take.
const PATIENCE: Duration = Duration::from_secs(600);
const UPLOAD: &str = "streaming.v1.StreamingService/UploadFile";
const DOWNLOAD: &str = "streaming.v1.StreamingService/DownloadFile";
const DELETE: &str = "weir.v1.Files/DeleteFile";

/// Megabytes a second, the median of all rounds.
#[derive(Debug, Serialize)]
struct Figures {
    up: Pair,
    down: Pair,
}

#[derive(Debug, Serialize)]
struct Pair {
    weir: f64,
    baseline: Option<f64>,
    ratio: Option<f64>,
}

/// Runs the command.
pub(super) async fn run(args: &FilesArgs, json: bool) -> Result<()> {
    let (mut weir, mut baseline) = (Vec::new(), Vec::new());
    // The servers take turns. The first round of each pays for what stays, and is not counted.
    for round in 0..=args.rounds {
        report::progress(&format!("round {round} of {}", args.rounds));
        weir.push(there_and_back(&args.addr, args.bytes()).await?);
        if let Some(addr) = &args.baseline_addr {
            let measured = there_and_back(addr, args.bytes()).await;
            baseline.push(measured.context("the baseline failed")?);
        }
    }
    let figures = Figures {
        up: Pair::of(&weir, &baseline, |(up, _)| *up),
        down: Pair::of(&weir, &baseline, |(_, down)| *down),
    };
    if json {
        return report::print_json("files", args, &figures);
    }
    report::print(&table(&figures))
}

impl Pair {
    fn of(weir: &[(f64, f64)], baseline: &[(f64, f64)], rate: impl Fn(&(f64, f64)) -> f64) -> Self {
        let median = |all: &[(f64, f64)]| {
            let mut rates: Vec<f64> = all.iter().skip(1).map(&rate).collect();
            rates.sort_by(f64::total_cmp);
            rates.get(rates.len() / 2).copied()
        };
        let (weir, baseline) = (median(weir).unwrap_or_default(), median(baseline));
        Self {
            weir,
            baseline,
            ratio: baseline.map(|baseline| weir / baseline),
        }
    }
}

fn table(figures: &Figures) -> String {
    let mut table = Table::new(["direction", "MB/s", "baseline MB/s", "ratio"]);
    for (name, pair) in [("up", &figures.up), ("down", &figures.down)] {
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), report::count);
        let ratio = pair.ratio.map_or_else(
            || "-".to_owned(),
            |ratio| {
                let verdict = match ratio >= 1.0 {
                    true => Verdict::Good,
                    false => Verdict::Bad,
                };
                report::coloured(&format!("{ratio:.2}"), verdict)
            },
        );
        table.row([
            name,
            &number(Some(pair.weir)),
            &number(pair.baseline),
            &ratio,
        ]);
    }
    table.render()
}

/// Uploads a file of `size`, downloads it and deletes it; megabytes a second, up to the last byte's acknowledgement.
async fn there_and_back(target: &Target, size: u64) -> Result<(f64, f64)> {
    let mut sender = target.connect_driven().await?;
    let start = Instant::now();
    let stored = upload(target, &mut sender, size).await?;
    let up = rate(size, start);
    ensure!(
        u64::try_from(stored.bytes_uploaded).ok() == Some(size),
        "{} of {size} bytes were stored",
        stored.bytes_uploaded
    );
    let start = Instant::now();
    let received = download(target, &mut sender, &stored.file_id, size).await?;
    let down = rate(size, start);
    ensure!(received >= size, "{received} of {size} bytes came back");
    let request = DeleteFileRequest {
        file_id: stored.file_id,
    };
    // The baseline has nothing to delete.
    let head = target.request_to(DELETE)?;
    let response = grpc::call(&mut sender, head, framed(&request)).await?;
    let _ = grpc::accepted(response, grpc::PATIENCE).await;
    Ok((up, down))
}

fn rate(bytes: u64, start: Instant) -> f64 {
    bytes as f64 / 1e6 / start.elapsed().as_secs_f64()
}

fn framed(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + message.encoded_len());
    frame.extend_from_slice(&[0]);
    frame.extend_from_slice(&(message.encoded_len() as u32).to_be_bytes());
    frame.extend_from_slice(&message.encode_to_vec());
    frame.freeze()
}

async fn upload(
    target: &Target,
    sender: &mut SendRequest<Bytes>,
    size: u64,
) -> Result<UploadFileResponse> {
    let metadata = FileMetadata {
        filename: "bench".into(),
        total_size: i64::try_from(size)?,
        ..FileMetadata::default()
    };
    let first = framed(&FileChunk {
        data: Some(Data::Metadata(metadata)),
        ..FileChunk::default()
    });
    let chunk = framed(&FileChunk {
        data: Some(Data::Chunk(vec![7; CHUNK_BYTES].into())),
        ..FileChunk::default()
    });
    grpc::ready(sender).await?;
    let (response, mut body) = sender.send_request(target.request_to(UPLOAD)?, false)?;
    let frames = std::iter::once(&first).chain(std::iter::repeat_n(
        &chunk,
        usize::try_from(size)? / CHUNK_BYTES,
    ));
    for frame in frames {
        let mut frame = frame.clone();
        while frame.has_remaining() {
            body.reserve_capacity(frame.len());
            let granted = timeout(PATIENCE, poll_fn(|cx| body.poll_capacity(cx)))
                .await
                .map_err(|_| anyhow!("the server does not read the upload"))?
                .context("the upload was closed")??;
            body.send_data(frame.split_to(granted.min(frame.len())), false)?;
        }
    }
    body.send_data(Bytes::new(), true)?;
    let answer = grpc::accepted(response, PATIENCE).await?;
    let message = grpc::only_message(answer, PATIENCE).await?;
    Ok(UploadFileResponse::decode(message)?)
}

async fn download(
    target: &Target,
    sender: &mut SendRequest<Bytes>,
    file_id: &str,
    size: u64,
) -> Result<u64> {
    let request = DownloadFileRequest {
        file_id: file_id.to_owned(),
        offset: 0,
        // The baseline sends as much as it is asked for.
        length: i64::try_from(size)?,
    };
    let response = grpc::call(sender, target.request_to(DOWNLOAD)?, framed(&request)).await?;
    let mut body = grpc::accepted(response, PATIENCE).await?;
    let mut received = 0;
    while let Some(data) = timeout(PATIENCE, body.data()).await? {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        received += data.len() as u64;
    }
    Ok(received)
}

//! From a stored file to frames on the wire.
//!
//! A piece of the file is read straight into the place it has in its gRPC frames: nothing is encoded and nothing copied
//! again. One piece is read while the one before is sent, so that a client that does not read costs two of them.

use std::{
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::BoxFuture;
use http_body::{Body, Frame};
use prost::encoding::{encode_varint, encoded_len_varint};
use tonic::Status;

use crate::{
    blob::{self, Reader},
    call::{Call, into_status},
    core::{Files, files::Content},
    proto::streaming::v1::{FileChunk, FileMetadata, file_chunk},
    services::live::{frame, trailers},
};

/// Bytes of one chunk.
const CHUNK_BYTES: u64 = 64 * 1024;
/// Chunks that are read together.
const PIECE_CHUNKS: u64 = 4;
/// Field tags of `FileChunk`: chunk (bytes), offset and size (varints).
const CHUNK_TAG: u8 = 2 << 3 | 2;
const OFFSET_TAG: u8 = 3 << 3;
const SIZE_TAG: u8 = 4 << 3;

/// A body of the file's metadata and its content.
pub(in crate::services) fn download(files: &Files, content: Content, call: Option<Call>) -> Chunks {
    let Content {
        info,
        range,
        reader,
    } = content;
    let mut first = BytesMut::new();
    let metadata = FileMetadata {
        filename: info.name,
        total_size: signed(info.size),
        content_type: info.content_type,
        checksum: info.sha256,
        upload_id: String::new(),
    };
    frame(
        &FileChunk {
            data: Some(file_chunk::Data::Metadata(metadata)),
            ..FileChunk::default()
        },
        &mut first,
    );
    if let Some(call) = &call {
        call.counts_itself();
    }
    Chunks {
        files: files.clone(),
        call,
        first: Some(first.freeze()),
        next: Next::Ready(reader),
        rest: range,
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

type Reading = BoxFuture<'static, Result<(Reader, BytesMut), blob::Error>>;

enum Next {
    /// Nothing is being read.
    Ready(Reader),
    /// A piece of so many bytes in so many chunks.
    Reading(Reading, Piece),
    Ended,
}

struct Piece {
    bytes: u64,
    chunks: usize,
}

/// The body.
pub(in crate::services) struct Chunks {
    files: Files,
    call: Option<Call>,
    first: Option<Bytes>,
    next: Next,
    /// What no piece was begun for.
    rest: Range<u64>,
}

impl Chunks {
    /// Begins to read the next piece, unless the file is at its end.
    fn begin(&mut self, reader: Reader) {
        if self.rest.is_empty() {
            self.next = Next::Ended;
            return;
        }
        let (buffer, spans) = layout(&mut self.rest);
        let piece = Piece {
            bytes: spans.iter().map(|span| span.len() as u64).sum(),
            chunks: spans.len(),
        };
        self.next = Next::Reading(reader.read(buffer, spans), piece);
    }

    fn sent(&self, messages: usize) {
        if let Some(call) = &self.call {
            call.sent(messages);
        }
    }
}

/// A piece's frames without its content, and where that belongs.
fn layout(rest: &mut Range<u64>) -> (BytesMut, Vec<Range<usize>>) {
    let end = rest.end.min(rest.start + CHUNK_BYTES * PIECE_CHUNKS);
    let mut spans = Vec::with_capacity(usize::try_from(PIECE_CHUNKS).unwrap_or_default());
    // A frame has some 30 bytes besides its content.
    let capacity = usize::try_from((CHUNK_BYTES + 64) * PIECE_CHUNKS).unwrap_or_default();
    let mut buffer = BytesMut::with_capacity(capacity);
    while rest.start < end {
        let size = (end - rest.start).min(CHUNK_BYTES);
        let mut tail = BytesMut::with_capacity(32);
        if rest.start > 0 {
            tail.put_u8(OFFSET_TAG);
            encode_varint(rest.start, &mut tail);
        }
        tail.put_u8(SIZE_TAG);
        encode_varint(size, &mut tail);
        let length = 1 + encoded_len_varint(size) as u64 + size + tail.len() as u64;
        buffer.put_u8(0);
        buffer.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        buffer.put_u8(CHUNK_TAG);
        encode_varint(size, &mut buffer);
        let start = buffer.len();
        let stop = start + usize::try_from(size).unwrap_or_default();
        buffer.resize(stop, 0);
        spans.push(start..stop);
        buffer.extend_from_slice(&tail);
        rest.start += size;
    }
    (buffer, spans)
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let Some(first) = this.first.take() {
            this.sent(1);
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        loop {
            match &mut this.next {
                Next::Ready(_) => {
                    if let Next::Ready(reader) = std::mem::replace(&mut this.next, Next::Ended) {
                        this.begin(reader);
                    }
                    if matches!(this.next, Next::Ended) {
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers(&Status::ok(""))))));
                    }
                }
                Next::Reading(reading, piece) => {
                    let (bytes, chunks) = (piece.bytes, piece.chunks);
                    return match ready!(reading.as_mut().poll(cx)) {
                        Ok((reader, buffer)) => {
                            this.files.sent(usize::try_from(bytes).unwrap_or_default());
                            this.sent(chunks);
                            match this.rest.is_empty() {
                                true => this.next = Next::Ready(reader),
                                false => this.begin(reader),
                            }
                            Poll::Ready(Some(Ok(Frame::data(buffer.freeze()))))
                        }
                        Err(error) => {
                            this.next = Next::Ended;
                            let status = into_status(error.into());
                            Poll::Ready(Some(Ok(Frame::trailers(trailers(&status)))))
                        }
                    };
                }
                Next::Ended => return Poll::Ready(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    proptest! {
        #[test]
        fn frames_decode_to_the_chunks_they_stand_for(start in 0u64..1 << 40, length in 1u64..600_000) {
            let mut rest = start..start + length;
            let mut at = start;
            while !rest.is_empty() {
                let (mut buffer, spans) = layout(&mut rest);
                for span in &spans {
                    buffer[span.clone()].fill(7);
                }
                let mut bytes = buffer.freeze();
                for span in spans {
                    let head = bytes.split_to(5);
                    let size = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
                    let chunk = FileChunk::decode(bytes.split_to(size as usize)).unwrap();
                    prop_assert_eq!(chunk.offset, at as i64);
                    prop_assert_eq!(chunk.size, span.len() as i64);
                    prop_assert_eq!(chunk.data, Some(file_chunk::Data::Chunk(vec![7; span.len()].into())));
                    at += span.len() as u64;
                }
                prop_assert!(bytes.is_empty());
            }
            prop_assert_eq!(at, start + length);
        }
    }
}

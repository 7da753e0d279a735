//! Files over HTTP, by what a browser or curl says: ranges, validators, a safe disposition.

use std::{
    fmt::Write as _,
    ops::Range,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
    routing::get,
};
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http_body::Frame;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use prost_types::Timestamp;

use crate::{
    blob::{self, Reader},
    call::{Ending, Registered, Streams},
    core::{
        self, Error,
        files::{Content, FileInfo},
    },
    log::EventTime,
};

/// Bytes read together. A download holds two such pieces at most.
const PIECE_BYTES: u64 = 256 * 1024;
/// What a file name may keep in a header (RFC 8187).
const ATTR_CHAR: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// What the routes stand on: the files, once they are open, and the streams that a drain ends.
#[derive(Clone)]
pub struct Files {
    files: Arc<OnceLock<core::Files>>,
    streams: Streams,
}

impl Files {
    /// Serves `files`; downloads are registered in `streams`.
    #[must_use]
    pub fn new(files: &Arc<OnceLock<core::Files>>, streams: &Streams) -> Self {
        Self {
            files: Arc::clone(files),
            streams: streams.clone(),
        }
    }

    /// GET and HEAD of `/files/{id}`.
    pub(super) fn router(self) -> Router {
        Router::new()
            .route("/files/{*id}", get(serve))
            .with_state(self)
    }
}

async fn serve(State(state): State<Files>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let Some(files) = state.files.get() else {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "not ready yet\n");
    };
    let answered = async {
        let info = files.get(&id).await?;
        answer(files, &state.streams, info, &headers).await
    };
    answered.await.unwrap_or_else(|error| refused(&error))
}

fn plain(status: StatusCode, text: &'static str) -> Response {
    (status, text).into_response()
}

fn refused(error: &Error) -> Response {
    match error {
        Error::NotFound { .. } => plain(StatusCode::NOT_FOUND, "not found\n"),
        Error::Blob(blob::Error::Busy) => {
            let text = "too many files are read at this moment\n";
            let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, text);
            set(response.headers_mut(), header::RETRY_AFTER, "1");
            response
        }
        error => {
            tracing::error!(%error, "a file could not be served");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "failed\n")
        }
    }
}

async fn answer(
    files: &core::Files,
    streams: &Streams,
    info: FileInfo,
    asked: &HeaderMap,
) -> Result<Response, Error> {
    let validators = Validators::of(&info);
    if validators.are_met(asked) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        validators.write(response.headers_mut());
        return Ok(response);
    }
    let wanted = asked
        .get(header::RANGE)
        .filter(|_| validators.allow_range(asked))
        .and_then(|range| Wanted::parse(range.to_str().ok()?));
    let (status, range) = match wanted.map(|wanted| wanted.of(info.size)) {
        None => (StatusCode::OK, 0..info.size),
        Some(Some(range)) => (StatusCode::PARTIAL_CONTENT, range),
        Some(None) => {
            let mut response = plain(StatusCode::RANGE_NOT_SATISFIABLE, "");
            let range = format!("bytes */{}", info.size);
            set(response.headers_mut(), header::CONTENT_RANGE, &range);
            return Ok(response);
        }
    };
    let mut response = status.into_response();
    let headers = response.headers_mut();
    validators.write(headers);
    describe(headers, &info, &range);
    if status == StatusCode::PARTIAL_CONTENT {
        let last = range.end.saturating_sub(1);
        let range = format!("bytes {}-{last}/{}", range.start, info.size);
        set(headers, header::CONTENT_RANGE, &range);
    }
    let content = files.content(info, range).await?;
    *response.body_mut() = Body::new(Download::new(files.clone(), content, streams.register()));
    Ok(response)
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // Everything that is set here is visible ASCII.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// What the file is. Whatever its uploader says, no browser shall run it as a page of this origin.
fn describe(headers: &mut HeaderMap, info: &FileInfo, range: &Range<u64>) {
    set(headers, header::CONTENT_TYPE, "application/octet-stream");
    set(headers, header::CONTENT_TYPE, &info.content_type);
    set(headers, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(
        headers,
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; sandbox",
    );
    set(
        headers,
        header::CONTENT_DISPOSITION,
        &disposition(&info.name),
    );
    set(headers, header::ACCEPT_RANGES, "bytes");
    set(
        headers,
        header::CONTENT_LENGTH,
        &(range.end - range.start).to_string(),
    );
}

/// The name for whoever saves the file (RFC 6266): in ASCII for old clients, and as it is, but without what would lead into
/// another directory or make an ending look like another one.
fn disposition(name: &str) -> String {
    let safe: String = name
        .chars()
        .map(|c| match c {
            '/' | '\\' => '_',
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '_',
            c => c,
        })
        .collect();
    let ascii: String = safe
        .chars()
        .map(|c| match c {
            '"' | '%' => '_',
            ' '..='~' => c,
            _ => '_',
        })
        .collect();
    let encoded = utf8_percent_encode(&safe, ATTR_CHAR);
    format!("attachment; filename=\"{ascii}\"; filename*=UTF-8''{encoded}")
}

/// What tells one version of a file from another.
struct Validators {
    etag: String,
    modified: String,
}

impl Validators {
    fn of(info: &FileInfo) -> Self {
        Self {
            etag: format!("\"{}\"", info.sha256),
            modified: http_date(EventTime::from(info.created).seconds),
        }
    }

    fn write(&self, headers: &mut HeaderMap) {
        set(headers, header::ETAG, &self.etag);
        set(headers, header::LAST_MODIFIED, &self.modified);
    }

    /// Whether the client has the file already.
    fn are_met(&self, asked: &HeaderMap) -> bool {
        let tags = asked.get_all(header::IF_NONE_MATCH);
        let mut tags = tags.iter().peekable();
        if tags.peek().is_some() {
            return tags
                .filter_map(|tags| tags.to_str().ok())
                .flat_map(|tags| tags.split(','))
                .map(str::trim)
                .any(|tag| tag == "*" || tag.trim_start_matches("W/") == self.etag);
        }
        let since = asked.get(header::IF_MODIFIED_SINCE);
        since.is_some_and(|since| since.as_bytes() == self.modified.as_bytes())
    }

    /// Whether a range is asked of this very version.
    fn allow_range(&self, asked: &HeaderMap) -> bool {
        asked.get(header::IF_RANGE).is_none_or(|version| {
            let version = version.as_bytes();
            version == self.etag.as_bytes() || version == self.modified.as_bytes()
        })
    }
}

/// A time as HTTP writes it: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(seconds: i64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let text = Timestamp { seconds, nanos: 0 }.to_string();
    let part = |range: Range<usize>| text.get(range).unwrap_or_default();
    let month = part(5..7).parse::<usize>().unwrap_or(1);
    // The epoch was a Thursday.
    let day = usize::try_from(seconds.div_euclid(24 * 3600).rem_euclid(7)).unwrap_or_default();
    let mut date = String::new();
    // Writing to a string does not fail.
    let _ = write!(
        date,
        "{}, {} {} {} {} GMT",
        DAYS[day],
        part(8..10),
        MONTHS[month.saturating_sub(1).min(11)],
        part(0..4),
        part(11..19)
    );
    date
}

/// One range of bytes as a client writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// From a byte on, to another one or the end.
    From(u64, Option<u64>),
    /// So many bytes at the end.
    Last(u64),
}

impl Wanted {
    /// `None`: it is no range of bytes, or more than one, and the whole file is the answer.
    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.strip_prefix("bytes=")?.trim().split_once('-')?;
        let number = |text: &str| {
            (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
                .then(|| text.parse::<u64>().unwrap_or(u64::MAX))
        };
        match (first, last) {
            ("", last) => number(last).map(Self::Last),
            (first, "") => Some(Self::From(number(first)?, None)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::From(first, Some(last)))
            }
        }
    }

    /// The bytes of a file of `size`; `None`: it has none of them.
    fn of(self, size: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(first, last) => {
                let until = last.map_or(size, |last| last.saturating_add(1).min(size));
                first..until
            }
            Self::Last(count) => size.saturating_sub(count)..size,
        };
        (!range.is_empty()).then_some(range)
    }
}

type Reading = BoxFuture<'static, Result<(Reader, BytesMut), blob::Error>>;

/// The content at the client's pace: one piece is read while the one before is sent.
struct Download {
    files: core::Files,
    rest: Range<u64>,
    reader: Option<Reader>,
    reading: Option<Reading>,
    /// Its age does not end a download: curl would not go on by itself. A drain does.
    registered: Option<Registered>,
}

impl Download {
    fn new(files: core::Files, content: Content, registered: Registered) -> Self {
        Self {
            files,
            rest: content.range,
            reader: Some(content.reader),
            reading: None,
            registered: Some(registered),
        }
    }

    fn begin(&mut self) {
        if let Some(reader) = self.reader.take_if(|_| !self.rest.is_empty()) {
            let bytes = (self.rest.end - self.rest.start).min(PIECE_BYTES);
            self.rest.start += bytes;
            let bytes = usize::try_from(bytes).unwrap_or_default();
            let span = 0..bytes;
            self.reading = Some(reader.read(BytesMut::zeroed(bytes), vec![span]));
        }
    }
}

impl http_body::Body for Download {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Some(registered) = &mut this.registered
            && let Poll::Ready(ending) = registered.poll_ending(cx)
        {
            this.registered = None;
            if ending == Ending::Drain {
                return Poll::Ready(Some(Err(Error::Log(crate::log::Error::Closed))));
            }
        }
        if this.reading.is_none() {
            this.begin();
        }
        let Some(reading) = &mut this.reading else {
            return Poll::Ready(None);
        };
        let read = ready!(reading.as_mut().poll(cx));
        this.reading = None;
        match read {
            Ok((reader, buffer)) => {
                this.files.sent(buffer.len());
                this.reader = Some(reader);
                this.begin();
                Poll::Ready(Some(Ok(Frame::data(buffer.freeze()))))
            }
            Err(error) => {
                tracing::error!(%error, "a download broke");
                Poll::Ready(Some(Err(error.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.reading.is_none() && self.rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_the_file() {
        let of = |text| Wanted::parse(text).map(|wanted| wanted.of(10));
        for (text, expected) in [
            ("bytes=0-0", Some(Some(0..1))),
            ("bytes=2-5", Some(Some(2..6))),
            ("bytes=2-", Some(Some(2..10))),
            ("bytes=-3", Some(Some(7..10))),
            ("bytes=-30", Some(Some(0..10))),
            ("bytes=5-99999999999999999999999", Some(Some(5..10))),
            ("bytes=10-", Some(None)),
            ("bytes=-0", Some(None)),
            ("bytes=5-2", None),
            ("bytes=0-1,3-4", None),
            ("bytes=a-b", None),
            ("bytes=+1-2", None),
            ("lines=0-1", None),
        ] {
            assert_eq!(of(text), expected, "{text}");
        }
        assert_eq!(Wanted::From(0, None).of(0), None);
    }

    #[test]
    fn dates_are_written_as_http_does() {
        assert_eq!(http_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(http_date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
    }

    #[test]
    fn a_name_cannot_leave_its_header_or_its_directory() {
        for (name, expected) in [
            (
                "a b.txt",
                "attachment; filename=\"a b.txt\"; filename*=UTF-8''a%20b.txt",
            ),
            (
                "../../etc/passwd",
                "attachment; filename=\".._.._etc_passwd\"; filename*=UTF-8''.._.._etc_passwd",
            ),
            (
                "x\"; y=\"é",
                "attachment; filename=\"x_; y=__\"; filename*=UTF-8''x%22%3B%20y%3D%22%C3%A9",
            ),
            (
                "a\u{202e}txt.exe",
                "attachment; filename=\"a_txt.exe\"; filename*=UTF-8''a_txt.exe",
            ),
        ] {
            assert_eq!(disposition(name), expected);
        }
    }
}

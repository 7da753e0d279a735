//! Processing of numbers: exact and sketched statistics of a batch, event-time windows and anomaly scores of live data.
//!
//! Owns the arithmetic and its bounds, nothing else: it stores nothing and knows no topic. Everything here is bounded by the
//! settings of `processing`: so many series, each of a stated size.

mod anomaly;
mod batch;
mod live;
mod moments;
mod sketch;
mod windows;

pub use anomaly::{MAX_SCORE, Recent};
pub use batch::{Batch, SeriesId, SeriesStatistics};
pub use live::{Live, Processed, Refused};
pub use moments::Moments;
pub use sketch::Sketch;
pub use windows::{TooLate, Windowed, Windows};

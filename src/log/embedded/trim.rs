//! Dropping the beginning of a topic: by a trim, by age, by size. What goes is decided by the index; only a segment that is dropped in
//! part is read, to know how much of it goes.

use super::{
    index::{Drop, Index, Part, Place},
    lock,
    read::Group,
    segment,
    shared::Shared,
};
use crate::log::{Error, Sequence, Topic};

/// Bytes read at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// Up to where a topic is dropped.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    /// Everything before this position.
    Before(Sequence),
    /// The oldest records, until no more than these bytes are left.
    Bytes(u64),
}

/// How far the index alone can tell.
struct Plan {
    oldest: Sequence,
    /// Behind the last record that goes as far as known; none when nothing goes.
    first: Option<Sequence>,
    /// The group that may be dropped in part, and what of it goes.
    part: Option<(
        std::sync::Arc<super::files::SegmentFile>,
        segment::Place,
        Goes,
    )>,
}

/// What of a group goes.
#[derive(Debug, Clone, Copy)]
enum Goes {
    Before(Sequence),
    /// This many bytes, and the rest of the record in which they end.
    Bytes(u64),
}

/// Drops the beginning of a topic; returns how many records that were. While an export runs nothing is dropped.
pub(super) fn trim(shared: &Shared, topic: &Topic, until: Until) -> Result<u64, Error> {
    let _one_at_a_time = lock(&shared.trimming);
    if shared.is_held() {
        return Ok(0);
    }
    let Some(plan) = plan(&lock(&shared.index), topic, until) else {
        return Ok(0);
    };
    let mut first = plan.first;
    let mut part = None;
    if let Some((file, place, goes)) = plan.part {
        let unreadable = |error: std::io::Error| Error::Unavailable(error.to_string());
        let opened = file.open().map_err(unreadable)?;
        let group = Group::new(&*opened, file.path(), topic, place);
        // A damaged group goes when all of it does.
        if let Some((last, found)) = measure(group, place, goes) {
            first = Some(last.next());
            part = Some(found);
        }
    }
    let Some(first) = first else {
        return Ok(0);
    };
    let drop = Drop {
        oldest: Some(plan.oldest),
        first,
        part,
    };
    let dropped = lock(&shared.index).dropped(topic, &drop).unwrap_or(0);
    if dropped > 0 {
        shared.meters.trimmed(topic.space(), dropped);
        shared.ask_reclaim();
    }
    Ok(dropped)
}

/// Drops what lies before a topic's first position, at the start: files may hold it still.
pub(super) fn forget(index: &mut Index, topic: &Topic, first: Sequence) {
    let Some(plan) = plan(index, topic, Until::Before(first)) else {
        return;
    };
    let part = plan.part.and_then(|(file, place, goes)| {
        let opened = file.open().ok()?;
        let group = Group::new(&*opened, file.path(), topic, place);
        measure(group, place, goes).map(|(_, part)| part)
    });
    let drop = Drop {
        oldest: Some(plan.oldest),
        first,
        part,
    };
    index.dropped(topic, &drop);
}

fn plan(index: &Index, topic: &Topic, until: Until) -> Option<Plan> {
    let state = index.find(topic)?;
    let mut plan = Plan {
        oldest: state.oldest()?,
        first: None,
        part: None,
    };
    let mut excess = match until {
        Until::Before(_) => 0,
        Until::Bytes(most) => state.bytes.saturating_sub(most),
    };
    for place in &state.places {
        let Some((_, last)) = place.span() else {
            continue;
        };
        let bytes = place.bytes();
        let goes_whole = match until {
            Until::Before(before) => last < before,
            Until::Bytes(_) => bytes <= excess,
        };
        if goes_whole {
            plan.first = Some(last.next());
            excess -= bytes.min(excess);
            continue;
        }
        plan.begin(index, place, until, excess);
        break;
    }
    (plan.first.is_some() || plan.part.is_some()).then_some(plan)
}

impl Plan {
    /// Takes in the place that goes in part.
    fn begin(&mut self, index: &Index, place: &Place, until: Until, excess: u64) {
        let goes = match until {
            Until::Before(before) => Goes::Before(before),
            Until::Bytes(_) => Goes::Bytes(excess),
        };
        match place {
            Place::Journal { spots, .. } => {
                let mut left = excess;
                for spot in spots {
                    let is_kept = match goes {
                        Goes::Before(before) => spot.sequence >= before,
                        Goes::Bytes(_) => left == 0,
                    };
                    if is_kept {
                        break;
                    }
                    left = left.saturating_sub(u64::from(spot.bytes));
                    self.first = Some(spot.sequence.next());
                }
            }
            Place::Segment { slot, place, .. } => {
                let goes_some = match goes {
                    Goes::Before(before) => place.first < before,
                    Goes::Bytes(bytes) => bytes > 0,
                };
                if goes_some && let Some(file) = index.segment_file(*slot) {
                    self.part = Some((file, *place, goes));
                }
            }
        }
    }
}

/// Reads the beginning of a group for what of it goes; the last record that goes too. None when that is nothing, or does not read
/// back.
fn measure(mut group: Group<'_>, place: segment::Place, goes: Goes) -> Option<(Sequence, Part)> {
    group.seek(place.first).ok()?;
    let mut part = Part {
        records: 0,
        bytes: 0,
        next: place.last,
    };
    let mut last = None;
    let read = group.each(place.first, CHUNK_BYTES, |_, record| {
        if record.sequence < place.first {
            return Ok(true);
        }
        let is_kept = match goes {
            Goes::Before(before) => record.sequence >= before,
            Goes::Bytes(bytes) => u64::from(part.bytes) >= bytes,
        };
        if is_kept {
            part.next = record.sequence;
            return Ok(false);
        }
        last = Some(record.sequence);
        part.records += 1;
        part.bytes += u32::try_from(record.entry.len()).unwrap_or(u32::MAX);
        Ok(true)
    });
    // All of it would have been dropped whole.
    let is_in_part = matches!(read, Ok(false));
    Some((last.filter(|_| is_in_part)?, part))
}

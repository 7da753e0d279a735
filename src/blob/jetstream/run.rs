//! The chunks that one writer wrote of a blob.

use serde::{Deserialize, Serialize};

/// The first chunks of a writer, which follow those of the runs before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::blob) struct Run {
    /// Names the writer: no two have the same.
    pub(super) id: String,
    /// How many of its chunks count.
    pub(super) chunks: u64,
}

impl Run {
    /// The run of a new writer.
    pub(super) fn new() -> Self {
        Self {
            id: format!("{:016x}", rand::random::<u64>()),
            chunks: 0,
        }
    }

    /// The ending of a chunk's subject.
    pub(super) fn chunk(&self, number: u64) -> String {
        format!("{}.{number}", self.id)
    }
}

/// The ending of the subject of chunk `index` of the blob.
pub(super) fn find(runs: &[Run], mut index: u64) -> Option<String> {
    for run in runs {
        if index < run.chunks {
            return Some(run.chunk(index));
        }
        index -= run.chunks;
    }
    None
}

/// Whether the chunk with this ending of a subject is one of the runs'.
pub(super) fn holds(runs: &[Run], chunk: &str) -> bool {
    let parts = chunk.split_once('.');
    let Some((id, Ok(number))) = parts.map(|(id, number)| (id, number.parse::<u64>())) else {
        return false;
    };
    runs.iter().any(|run| run.id == id && number < run.chunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_found_run_by_run() {
        let run = |id: &str, chunks| Run {
            id: id.into(),
            chunks,
        };
        let runs = [run("a", 2), run("b", 0), run("c", 1)];
        let found: Vec<_> = (0..4).map(|index| find(&runs, index)).collect();
        let named = |text: &str| Some(text.to_owned());
        assert_eq!(found, [named("a.0"), named("a.1"), named("c.0"), None]);
        for (chunk, is_held) in [
            ("a.1", true),
            ("a.2", false),
            ("b.0", false),
            ("c.0", true),
            ("d.0", false),
            ("a", false),
            ("a.x", false),
        ] {
            assert_eq!(holds(&runs, chunk), is_held, "{chunk}");
        }
        assert_ne!(Run::new(), Run::new());
    }
}

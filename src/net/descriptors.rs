//! File descriptors: how many the process may have, and which part of it may take how many.
//!
//! A connection that gets the last descriptor takes it from the log, whose failed write is final. So the limit is shared out
//! at the start, each part is bounded by its share, and the shares together never exceed the limit:
//!
//! | share | bounded by |
//! |---|---|
//! | the log | `LOG`, a promise of the engine on this machine's disk |
//! | the process itself | `OWN`, the sum of what is listed there |
//! | connections of the admin port | [`Descriptors::admin`] |
//! | contents of files, requests to S3 | [`Descriptors::files`], permits of `blob` |
//! | connections of clients | [`Descriptors::clients`] |

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The log's: sealed segments that are kept open, the one that is written, an index, the directory.
const LOG: usize = 80;
/// The process's own. Standard streams 3, the runtime and signals 8, listeners and what they accept and refuse 12, backups 4
/// with two handles of a socket and two files each and one being refused 18, NATS and traces 4; the rest is room for names
/// that are looked up.
const OWN: usize = 48;
/// A limit below this leaves the log and the process itself no more than two thirds.
const SMALL: usize = (LOG + OWN) / 2 * 3;
/// Connections of the admin port, where there is room: probes and scrapes.
const ADMIN: usize = 16;
/// Files that connections leave room for at least, where the limit is large enough.
const FILES: usize = 1024;

/// How the process's descriptors are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// Descriptors the process may have.
    pub limit: usize,
    /// Connections that clients may have.
    pub clients: Capacity,
    /// Connections that the admin port may have.
    pub admin: Capacity,
    /// Descriptors for contents of files and for requests to S3.
    pub files: usize,
}

/// How many connections may be held, and by which setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Connections at most.
    pub connections: usize,
    /// The reason with which further ones are counted in `weir_connections_refused_total`.
    pub reason: &'static str,
}

impl Capacity {
    /// What is wanted, or what there is.
    fn of(wanted: usize, room: usize) -> Self {
        let is_short = room < wanted;
        Self {
            connections: wanted.min(room),
            reason: if is_short { "descriptors" } else { "limit" },
        }
    }
}

impl Descriptors {
    /// Shares out what the process may have now, for `max_connections` of clients. Where the system does not tell the limit,
    /// there is none.
    #[must_use]
    pub fn of_process(max_connections: usize) -> Self {
        Self::within(count(getrlimit(Resource::Nofile).current), max_connections)
    }

    /// Shares out `limit` descriptors. Every share is at least one, however small the limit is.
    #[must_use]
    pub fn within(limit: usize, max_connections: usize) -> Self {
        let rest = if limit < SMALL {
            limit.div_ceil(3)
        } else {
            limit - (LOG + OWN)
        };
        // One share of what the others leave, so that more descriptors are never fewer connections.
        let connections = rest - (rest / 4).min(FILES);
        let admin = (connections / 8).clamp(1, ADMIN);
        let clients = Capacity::of(max_connections, connections.saturating_sub(admin).max(1));
        Self {
            limit,
            clients,
            admin: Capacity::of(max_connections, admin),
            files: rest.saturating_sub(admin + clients.connections).max(1),
        }
    }

    /// The smallest limit with room for `max_connections` of clients.
    #[must_use]
    pub fn needed(max_connections: usize) -> usize {
        let (mut least, mut enough) = (0, usize::MAX);
        while least < enough {
            let middle = least + (enough - least) / 2;
            if Self::within(middle, max_connections).clients.connections < max_connections {
                least = middle + 1;
            } else {
                enough = middle;
            }
        }
        enough
    }
}

/// What the process may have, before and after it was [raised](raise).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raised {
    /// Descriptors before.
    pub from: usize,
    /// Descriptors now.
    pub to: usize,
}

/// Raises the process's limit on descriptors to what it may have without asking: its soft limit to its hard one.
///
/// # Errors
/// The system refuses; the limit is what it was.
pub fn raise() -> io::Result<Raised> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    if current != maximum {
        setrlimit(Resource::Nofile, raised)?;
    }
    Ok(Raised {
        from: count(current),
        to: count(maximum),
    })
}

/// A limit of the system as a number; without one as many as can be counted.
fn count(limit: Option<u64>) -> usize {
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(limit: usize, max_connections: usize) -> [usize; 3] {
        let shared = Descriptors::within(limit, max_connections);
        [
            shared.clients.connections,
            shared.admin.connections,
            shared.files,
        ]
    }

    #[test]
    fn a_limit_is_shared_out() {
        for (limit, expected) in [
            (64, [15, 2, 5]),
            (200, [48, 6, 18]),
            (256, [84, 12, 32]),
            (1024, [656, 16, 224]),
            (4096, [2960, 16, 992]),
            (20_000, [10_000, 16, 9_856]),
            (1_048_576, [10_000, 16, 1_038_432]),
        ] {
            assert_eq!(shares(limit, 10_000), expected, "{limit}");
        }
    }

    #[test]
    fn shares_never_exceed_the_limit() {
        for limit in 10..5000 {
            for max_connections in [1, 16, 100, 1000, 10_000] {
                let [clients, admin, files] = shares(limit, max_connections);
                let reserve = (LOG + OWN).min(limit - limit.div_ceil(3));
                let sum = clients + admin + files + reserve;
                assert!(sum <= limit, "{sum} of {limit}, {max_connections}");
                assert!(clients > 0 && admin > 0 && files > 0, "{limit}");
            }
        }
        assert_eq!(shares(0, 100), [1, 1, 1]);
        assert_eq!(shares(usize::MAX, 100)[..2], [100, 16]);
    }

    #[test]
    fn the_setting_or_the_descriptors_bound_connections() {
        let few = Descriptors::within(1024, 10_000).clients;
        assert_eq!(few.reason, "descriptors");
        let enough = Descriptors::within(1024, 656).clients;
        assert_eq!((enough.connections, enough.reason), (656, "limit"));
        assert_eq!(Descriptors::within(1024, 5).admin.reason, "limit");
    }

    #[test]
    fn what_is_needed_is_the_smallest_limit_that_fits() {
        for (max_connections, needed) in [(48, 199), (656, 1023), (10_000, 11_168)] {
            assert_eq!(Descriptors::needed(max_connections), needed);
            let fits =
                |limit| Descriptors::within(limit, max_connections).clients.reason == "limit";
            assert!(fits(needed) && !fits(needed - 1), "{max_connections}");
        }
    }

    #[test]
    fn the_limit_of_a_process_is_raised_to_its_hard_one() {
        let raised = raise().unwrap();
        assert!(raised.from <= raised.to);
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(Descriptors::of_process(1).limit, raised.to);
    }
}

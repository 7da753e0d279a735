//! Connections: Weir's own accept loop over hyper.
//!
//! Owns listening, connection limits, how descriptors are shared out (`descriptors`), ages, the preface timeout, GOAWAY on drain and the hard end. Two things make the hot
//! path cheap: all streams of a connection are polled inside the connection's own task (`connection`), and everything
//! they send in one poll leaves with one write (`io`). Knows HTTP, not gRPC: what is served is any tower service.

mod connection;
pub mod descriptors;
mod expiry;
mod io;
mod listener;
mod tasks;

pub use connection::Settings;
pub use descriptors::{Capacity, Descriptors};
pub use expiry::Expiry;
pub use io::Link;
pub use listener::{Acceptor, Closing, HttpService, bind};

/// The address a request came from; in every request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub std::net::SocketAddr);

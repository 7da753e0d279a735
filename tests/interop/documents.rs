//! Shared documents by real Yjs clients.

use crate::{
    clients::{file, passes},
    support::TestServer,
};

#[tokio::test]
async fn yjs_editors_converge_over_offline_edits_and_reconnects() {
    let server = TestServer::start().await;
    let (script, protos) = (file("node/collab.js"), file("../../proto"));
    passes("node", &[&script, &server.grpc().to_string(), &protos]).await;
}

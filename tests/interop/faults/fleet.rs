//! Replicas on one log, behind a balancer.

use std::net::SocketAddr;

use super::balancer::Balancer;
use crate::support::{Settings, TestServer, server::lasting_address};

/// Some replicas. Each keeps its ports when it is started again.
pub(super) struct Fleet {
    pub(super) balancer: Balancer,
    pub(super) replicas: Vec<TestServer>,
    settings: Settings,
}

impl Fleet {
    /// Starts replicas on the NATS servers at `nats`.
    pub(super) async fn start(count: usize, nats: &str, settings: Settings) -> Self {
        let settings = settings
            .set("log.engine", "jetstream")
            .set("jetstream.url", nats)
            .set("jetstream.timeout", "2s");
        let mut fleet = Self {
            balancer: Balancer::start().await,
            replicas: Vec::new(),
            settings,
        };
        for _ in 0..count {
            fleet.join().await;
        }
        fleet
    }

    /// Starts one more.
    pub(super) async fn join(&mut self) {
        self.join_with(self.settings.clone()).await;
    }

    /// Starts one more, which knows this address of NATS at first.
    pub(super) async fn join_at(&mut self, nats: &str) {
        let settings = self.settings.clone().set("jetstream.url", nats);
        self.join_with(settings).await;
    }

    async fn join_with(&mut self, settings: Settings) {
        let name = format!("replica-{}", self.replicas.len());
        let settings = settings
            .set("server.instance_id", name)
            .set("server.grpc", lasting_address())
            .set("server.admin", lasting_address());
        let replica = TestServer::with(settings).await;
        self.balancer.add(replica.grpc(), replica.admin()).await;
        self.replicas.push(replica);
    }

    /// Starts one that has ended again, on its ports.
    pub(super) async fn resume(&mut self, index: usize) {
        let ended = self.replicas.remove(index);
        let addresses =
            |replica: &TestServer| -> [SocketAddr; 2] { [replica.grpc(), replica.admin()] };
        let before = addresses(&ended);
        let replica = ended.restart().await;
        assert_eq!(addresses(&replica), before);
        self.replicas.insert(index, replica);
        self.balancer.has(before[0]).await;
    }
}

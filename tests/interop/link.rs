//! A way to NATS that a test can cut.

use std::net::SocketAddr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// A way to a server that can be cut without either end being told.
pub(crate) struct Link {
    address: SocketAddr,
    to: SocketAddr,
    listening: Option<tokio::task::JoinHandle<()>>,
}

impl Link {
    pub(crate) async fn to(url: &str) -> Self {
        let to = url.trim_start_matches("nats://").parse().unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let listening = Some(tokio::spawn(carry(listener, to)));
        Self {
            address,
            to,
            listening,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    pub(crate) async fn cut(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.abort();
            let _ = listening.await;
        }
    }

    pub(crate) async fn mend(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.listening = Some(tokio::spawn(carry(listener, self.to)));
    }
}

/// Passes connections on; aborting it breaks them.
async fn carry(listener: TcpListener, to: SocketAddr) {
    let mut connections = JoinSet::new();
    while let Ok((mut from, _)) = listener.accept().await {
        connections.spawn(async move {
            let mut to = TcpStream::connect(to).await?;
            copy_bidirectional(&mut from, &mut to).await
        });
    }
}

//! What a Kubernetes Service does: new connections go to the replicas that are ready, in turn.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::support::{eventually, server::http_get};

/// Connections at most; further ones are closed at once.
const MOST: usize = 5000;
/// Between two looks at a replica's readiness.
const PERIOD: Duration = Duration::from_millis(50);
/// How long a replica may take to answer or to accept.
const PATIENCE: Duration = Duration::from_secs(1);

/// A TCP balancer on a port of its own. Dropping it breaks every connection.
pub(super) struct Balancer {
    address: SocketAddr,
    backends: Arc<Mutex<Vec<Backend>>>,
    _tasks: JoinSet<()>,
}

#[derive(Clone)]
struct Backend {
    grpc: SocketAddr,
    admin: SocketAddr,
    is_ready: bool,
}

impl Balancer {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let backends = Arc::<Mutex<Vec<Backend>>>::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(probe(backends.clone()));
        tasks.spawn(accept(listener, backends.clone()));
        Self {
            address,
            backends,
            _tasks: tasks,
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Takes a replica in and waits until it gets connections.
    pub(super) async fn add(&self, grpc: SocketAddr, admin: SocketAddr) {
        self.backends.lock().unwrap().push(Backend {
            grpc,
            admin,
            is_ready: false,
        });
        self.has(grpc).await;
    }

    /// Waits until a replica gets connections.
    pub(super) async fn has(&self, grpc: SocketAddr) {
        eventually("the balancer to see a replica", || async {
            ready(&self.backends).contains(&grpc).then_some(())
        })
        .await;
    }
}

fn ready(backends: &Mutex<Vec<Backend>>) -> Vec<SocketAddr> {
    let backends = backends.lock().unwrap();
    let ready = backends.iter().filter(|backend| backend.is_ready);
    ready.map(|backend| backend.grpc).collect()
}

async fn probe(backends: Arc<Mutex<Vec<Backend>>>) {
    loop {
        let all = backends.lock().unwrap().clone();
        join_all(all.iter().map(async |backend| {
            let answer = timeout(PATIENCE, http_get(backend.admin, "/readyz")).await;
            let is_ready = answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"));
            for same in backends.lock().unwrap().iter_mut() {
                if same.grpc == backend.grpc {
                    same.is_ready = is_ready;
                }
            }
        }))
        .await;
        sleep(PERIOD).await;
    }
}

async fn accept(listener: TcpListener, backends: Arc<Mutex<Vec<Backend>>>) {
    let turn = Arc::new(AtomicUsize::new(0));
    let mut connections = JoinSet::new();
    loop {
        let Ok((mut client, _)) = listener.accept().await else {
            continue;
        };
        while connections.try_join_next().is_some() {}
        if connections.len() >= MOST {
            continue;
        }
        let (backends, turn) = (backends.clone(), turn.clone());
        connections.spawn(async move {
            let Some(mut replica) = connect(&backends, &turn).await else {
                return;
            };
            let _ = (client.set_nodelay(true), replica.set_nodelay(true));
            let _ = copy_bidirectional(&mut client, &mut replica).await;
        });
    }
}

/// A connection to the next replica that takes one.
async fn connect(backends: &Mutex<Vec<Backend>>, turn: &AtomicUsize) -> Option<TcpStream> {
    let ready = ready(backends);
    for _ in 0..ready.len() {
        let next = turn.fetch_add(1, Ordering::Relaxed) % ready.len();
        if let Ok(Ok(stream)) = timeout(PATIENCE, TcpStream::connect(ready[next])).await {
            return Some(stream);
        }
    }
    None
}

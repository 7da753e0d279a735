//! What runs beside the calls: beating, watching, and looking at the members that wait.

use std::time::Duration;

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::{AT_ONCE, Inner, Shared, state::News};
use crate::registry::{Change, Changes, Error, Member, Revision};

/// Between two attempts.
const RETRY: Duration = Duration::from_secs(1);

impl Shared {
    pub(in crate::core::presence) async fn run(self) {
        let inner = &*self.0;
        tokio::join!(inner.beat(), inner.watch(), inner.work());
    }
}

impl Inner {
    /// Says again and again that this instance runs.
    async fn beat(&self) {
        let pace = self.registry.pace();
        let mut connected = self.registry.connected();
        let mut beats = interval(pace);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beats.tick().await;
            let _ = connected.wait_for(|connected| *connected).await;
            if let Err(error) = self.registry.beat().await {
                tracing::debug!(%error, "this instance could not beat");
                if *connected.borrow() {
                    // The others could not either, perhaps: their keys may end, and they run.
                    self.anew.notify_one();
                }
                sleep(RETRY.min(pace)).await;
            }
        }
    }

    /// Follows the registry, from a look at everything.
    async fn watch(&self) {
        let mut connected = self.registry.connected();
        loop {
            let _ = connected.wait_for(|connected| *connected).await;
            if let Err(error) = self.follow().await {
                tracing::debug!(%error, "the registry is looked at anew");
                sleep(RETRY.min(self.registry.pace())).await;
            }
        }
    }

    /// Follows the registry until it is away, or has to be looked at anew.
    async fn follow(&self) -> Result<(), Error> {
        self.lock().begin_watch();
        let follow = async {
            let changes = self.registry.watch().await?;
            // Told after everything that was there before.
            let last = self.registry.beat().await?;
            self.take_in(changes, last).await
        };
        let mut connected = self.registry.connected();
        let result = tokio::select! {
            result = follow => result,
            _ = connected.wait_for(|connected| !connected) => Ok(()),
            () = self.anew.notified() => Err(Error("beats failed".into())),
        };
        self.is_current.send_replace(false);
        self.lock().begin_watch();
        result
    }

    async fn take_in(&self, mut changes: Changes, last: Revision) -> Result<(), Error> {
        // This instance's own beats come in, if nothing else does.
        let silence = self.registry.patience() + 2 * self.registry.pace();
        let mut is_complete = false;
        let mut is_settled = false;
        loop {
            let settled = self.lock().settled();
            let change = tokio::select! {
                change = timeout(silence, changes.next()) => change,
                () = settles(settled), if !is_settled => {
                    is_settled = true;
                    self.lock().look_at_all();
                    self.changed.notify_one();
                    continue;
                }
            };
            let change = match change {
                Ok(Some(change)) => change?,
                Ok(None) => return Err(Error("the watch ended".into())),
                Err(_) => return Err(Error("the watch is silent".into())),
            };
            let revision = change.revision;
            let news = self.change(change);
            if news == News::Forgotten && is_complete {
                return Err(Error("this instance was taken for gone".into()));
            }
            if !is_complete && revision >= last {
                is_complete = true;
                tracing::debug!("the registry is known");
                let settles = Instant::now() + self.registry.recovery();
                let mut state = self.lock();
                state.complete_watch(revision, settles);
                self.measure(&state);
                drop(state);
                self.is_current.send_replace(true);
                self.changed.notify_one();
            } else if news == News::Waiting {
                self.changed.notify_one();
            }
        }
    }

    fn change(&self, change: Change) -> News {
        let mut state = self.lock();
        let news = state.change(change);
        self.measure(&state);
        news
    }

    /// Ends leases, and looks at members that wait while the registry can be reached.
    async fn work(&self) {
        let mut connected = self.registry.connected();
        let mut working = FuturesUnordered::new();
        loop {
            let free = match *connected.borrow_and_update() {
                true => AT_ONCE.saturating_sub(working.len()),
                false => 0,
            };
            let (members, lease) = self.due(free);
            working.extend(members.into_iter().map(|member| self.look(member)));
            tokio::select! {
                Some(()) = working.next() => {}
                () = self.changed.notified() => {}
                () = settles(lease) => {}
                Ok(()) = connected.changed() => {}
            }
        }
    }

    /// Ends leases; so many members that wait, and when the next lease ends.
    fn due(&self, most: usize) -> (Vec<Member>, Option<Instant>) {
        let mut state = self.lock();
        state.end_leases();
        let waiting = std::iter::from_fn(|| state.next_waiting());
        (waiting.take(most).collect(), state.next_lease())
    }

    async fn look(&self, member: Member) {
        let turn = self.turn(&member).lock().await;
        let Err(error) = self.converge(&member).await else {
            return;
        };
        drop(turn);
        tracing::debug!(%error, "a member waits");
        sleep(RETRY).await;
        self.look_at(member);
    }
}

async fn settles(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

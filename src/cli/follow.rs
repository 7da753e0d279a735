//! Following on stdout: what every command that prints a subscription shares.

use std::io::{self, BufWriter, Write};

use clap::Args;
use futures::FutureExt as _;
use tonic::Status;

use super::{Failure, notices};
use crate::client::{Sequenced, Subscription};

/// What to print of a subscription, and how.
#[derive(Debug, Args)]
pub(super) struct FollowArgs {
    /// Start after this sequence, 0 being the first retained record [default: with the next one].
    #[arg(long, value_name = "SEQUENCE")]
    pub(super) after: Option<u64>,
    /// Stop after this many lines.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print one JSON object per line, with all fields.
    #[arg(long)]
    json: bool,
}

impl FollowArgs {
    /// Prints the lines that `columns` or `json` makes of each item until there were enough.
    pub(super) async fn print<T: Sequenced + 'static>(
        &self,
        subscription: Subscription<T>,
        addr: &str,
        columns: impl Fn(&T) -> Vec<String>,
        json: impl Fn(&T) -> serde_json::Result<Vec<String>>,
    ) -> Result<(), Failure> {
        let lines = |item: &T| match self.json {
            true => json(item).map_err(|error| Failure::failed(error.to_string())),
            false => Ok(columns(item)),
        };
        let subscription = subscription.with_observer(notices::observer(addr));
        let output = BufWriter::new(io::stdout());
        follow(subscription, addr, self.count, output, lines).await
    }

    /// Prints items that are there already.
    pub(super) fn print_all<T>(
        &self,
        items: &[T],
        columns: impl Fn(&T) -> String,
        json: impl Fn(&T) -> serde_json::Result<String>,
    ) -> Result<(), Failure> {
        let mut output = BufWriter::new(io::stdout());
        for item in items {
            let line = match self.json {
                true => json(item).map_err(|error| Failure::failed(error.to_string()))?,
                false => columns(item),
            };
            writeln!(output, "{line}")?;
        }
        Ok(output.flush()?)
    }
}

/// Writes the lines of what a subscription brings until `count` were written.
async fn follow<T: Sequenced + 'static>(
    mut subscription: Subscription<T>,
    addr: &str,
    count: Option<u64>,
    mut output: impl Write,
    lines: impl Fn(&T) -> Result<Vec<String>, Failure>,
) -> Result<(), Failure> {
    let mut left = count;
    while left != Some(0) {
        let item = next(&mut subscription, &mut output).await?;
        let item = item.map_err(|status| Failure::status(addr, &status))?;
        for line in lines(&item)? {
            if left == Some(0) {
                break;
            }
            writeln!(output, "{line}")?;
            left = left.map(|left| left - 1);
        }
    }
    Ok(output.flush()?)
}

/// The next item; the output is flushed before it is waited for.
async fn next<T: Sequenced + 'static>(
    subscription: &mut Subscription<T>,
    output: &mut impl Write,
) -> Result<Result<T, Status>, Failure> {
    let ended = || Failure::failed("the subscription has ended");
    if let Some(item) = subscription.next().now_or_never() {
        return item.ok_or_else(ended);
    }
    output.flush()?;
    subscription.next().await.ok_or_else(ended)
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use tonic::Response;

    use super::*;

    /// As many lines as it says.
    #[derive(Clone, Copy)]
    struct Item(u64, u64);

    impl Sequenced for Item {
        fn sequence(&self) -> u64 {
            self.0
        }
    }

    async fn printed(count: u64, items: &'static [Item]) -> String {
        let subscription = Subscription::new(Some(0), move |_| async move {
            Ok(Response::new(stream::iter(items.iter().copied().map(Ok))))
        });
        let mut output = Vec::new();
        let lines = |item: &Item| {
            Ok((0..item.1)
                .map(|line| format!("{}.{line}", item.0))
                .collect())
        };
        follow(subscription, "", Some(count), &mut output, lines)
            .await
            .unwrap();
        String::from_utf8(output).unwrap()
    }

    #[tokio::test]
    async fn lines_are_counted_also_within_a_batch() {
        let items = &[Item(0, 0), Item(3, 2), Item(0, 0), Item(7, 3)];
        assert_eq!(printed(1, items).await, "3.0\n");
        assert_eq!(printed(4, items).await, "3.0\n3.1\n7.0\n7.1\n");
    }
}

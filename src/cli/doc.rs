//! `weir doc`: shared documents that are a text.

use std::io::{self, Write as _};

use clap::{Args, Subcommand};

use super::{Failure, Persistence, Target, format, notices};
use crate::client::{Client, TextDocument};

const AFTER_HELP: &str = "\
Examples:
  weir doc set minutes 'Agenda: '              replace the text, keeping what others write meanwhile
  weir doc append minutes 'budget'             add to its end
  weir doc get minutes                         print the text
  weir doc watch minutes                       print it again whenever somebody edits it

A document is a Yjs document; the text is its shared type called `content` unless --field says otherwise.";

/// Read and edit shared documents.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct DocArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print the text.
    Get(Which),
    /// Print the text, and again after every change: one line each, control characters written out.
    Watch(Which),
    /// Replace the text and print the position that has it.
    Set(Edit),
    /// Add to the end of the text and print the position that has it.
    Append(Edit),
}

#[derive(Debug, Args)]
struct Which {
    /// The document.
    id: String,
    /// The shared type that is the text.
    #[arg(long, value_name = "NAME", default_value = "content")]
    field: String,
    /// Who reads or edits it.
    #[arg(long, value_name = "NAME", default_value = "weir-doc")]
    user: String,
    #[command(flatten)]
    server: Target,
    #[command(flatten)]
    persistence: Persistence,
}

#[derive(Debug, Args)]
struct Edit {
    #[command(flatten)]
    which: Which,
    /// The text.
    text: String,
}

impl Which {
    async fn connect(&self) -> Result<Client, Failure> {
        self.persistence.connect(&self.server).await
    }

    fn failed(&self, status: &tonic::Status) -> Failure {
        Failure::status(&self.server.addr, status)
    }
}

pub(super) async fn run(args: DocArgs) -> Result<(), Failure> {
    match args.action {
        Action::Get(which) => get(&which).await,
        Action::Watch(which) => watch(&which).await,
        Action::Set(edit) => store(&edit, TextDocument::set).await,
        Action::Append(edit) => store(&edit, TextDocument::append).await,
    }
}

async fn get(which: &Which) -> Result<(), Failure> {
    let client = which.connect().await?;
    let found = client.document(&which.id, &which.field).await;
    let (document, _) = found.map_err(|status| which.failed(&status))?;
    Ok(writeln!(io::stdout(), "{}", document.text())?)
}

async fn watch(which: &Which) -> Result<(), Failure> {
    let client = which.connect().await?;
    let document = TextDocument::new(&which.field);
    let mut events = client
        .watch_document(&which.id, &which.user, &document)
        .with_observer(notices::observer(&which.server.addr));
    let mut shown = None;
    while let Some(event) = events.next().await {
        let heard = event.and_then(|event| document.hear(&event));
        let is_text = heard.map_err(|status| which.failed(&status))?;
        let text = document.text();
        if is_text && shown.as_ref() != Some(&text) {
            writeln!(io::stdout(), "{}", format::plain(&text))?;
            shown = Some(text);
        }
    }
    Err(Failure::failed("the subscription has ended"))
}

async fn store(edit: &Edit, make: fn(&TextDocument, &str) -> bytes::Bytes) -> Result<(), Failure> {
    let which = &edit.which;
    let client = which.connect().await?;
    let make = |document: &TextDocument| make(document, &edit.text);
    let stored = client.edit_document(&which.id, &which.field, &which.user, make);
    let sequence = stored.await.map_err(|status| which.failed(&status))?;
    Ok(writeln!(io::stdout(), "{sequence}")?)
}

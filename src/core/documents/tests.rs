use std::sync::Arc;

use proptest::prelude::*;
use yrs::{
    Array as _, ArrayPrelim, Doc, GetString as _, Map as _, ReadTxn as _, StateVector, Text as _,
    Transact as _, Update, WriteTxn as _, updates::decoder::Decode as _,
};

use super::*;
use crate::{
    core::Hub,
    log::{Engine, Space, memory},
    telemetry::{Metrics, Traces},
};

pub(super) fn documents_on(engine: Arc<dyn Engine>, config: &config::Documents) -> Documents {
    let traces = Traces::off();
    let hub = Hub::new(
        Arc::clone(&engine),
        &config::Hub::default(),
        Metrics::new(),
        traces.clone(),
    );
    Documents::new(Topics::new(engine, hub, traces), config, usize::MAX)
}

pub(super) fn engine() -> Arc<dyn Engine> {
    Arc::new(memory::Memory::new(memory::Options::new(
        &config::Log::default(),
        Metrics::new(),
    )))
}

pub(super) fn topic(name: &str) -> Topic {
    Topic::new(Space::Document, name).unwrap()
}

pub(super) fn change(update: impl Into<Bytes>) -> Change {
    Change {
        user: Name::new("ann").unwrap(),
        id: "one".into(),
        event_time: None,
        key: None,
        update: update.into(),
    }
}

/// An editor that counts text as Yjs does.
pub(super) fn new_editor() -> Doc {
    Doc::with_options(yrs::Options {
        offset_kind: yrs::OffsetKind::Utf16,
        ..yrs::Options::default()
    })
}

/// Everything `doc` has.
fn everything(doc: &Doc) -> Vec<u8> {
    doc.transact()
        .encode_state_as_update_v1(&StateVector::default())
}

/// What an edit of the text brings.
pub(super) fn typed(doc: &Doc, at: u32, text: &str) -> Vec<u8> {
    let content = doc.get_or_insert_text("content");
    let mut transaction = doc.transact_mut();
    content.insert(&mut transaction, at, text);
    transaction.encode_update_v1()
}

fn erased(doc: &Doc, at: u32, length: u32) -> Vec<u8> {
    let content = doc.get_or_insert_text("content");
    let mut transaction = doc.transact_mut();
    content.remove_range(&mut transaction, at, length);
    transaction.encode_update_v1()
}

fn text_of(state: &[u8]) -> String {
    let doc = new_editor();
    let content = doc.get_or_insert_text("content");
    let mut transaction = doc.transact_mut();
    transaction
        .apply_update(Update::decode_v1(state).unwrap())
        .unwrap();
    content.get_string(&transaction)
}

pub(super) async fn text(document: &Document) -> String {
    text_of(&document.state().await.unwrap().update)
}

pub(super) async fn apply(document: &Document, update: Vec<u8>) -> Saved {
    let (saved, error) = document.apply(vec![change(update)]).await;
    assert_eq!(error, None);
    saved[0]
}

#[tokio::test]
async fn what_is_applied_is_there_for_others_and_after_a_restart() {
    let engine = engine();
    let documents = documents_on(Arc::clone(&engine), &config::Documents::default());
    let document = documents.open(&topic("a")).unwrap();
    assert_eq!(document.state().await.unwrap().sequence, Sequence(0));
    let mut joined = document.join(Bytes::new()).await.unwrap();
    let editor = new_editor();
    let first = apply(&document, typed(&editor, 0, "hello")).await;
    let second = apply(&document, typed(&editor, 5, " world")).await;
    assert!(first.is_stored && second.sequence > first.sequence);
    let records = joined.records.next().await.unwrap().data;
    assert_eq!(records[0].sequence, first.sequence);
    assert_eq!(text(&document).await, "hello world");
    assert_eq!(document.state().await.unwrap().sequence, second.sequence);
    let again = documents_on(engine, &config::Documents::default());
    let document = again.open(&topic("a")).unwrap();
    assert_eq!(text(&document).await, "hello world");
    assert_eq!(document.state().await.unwrap().sequence, second.sequence);
}

#[tokio::test]
async fn an_update_that_brings_nothing_is_not_stored_again() {
    let documents = documents_on(engine(), &config::Documents::default());
    let document = documents.open(&topic("a")).unwrap();
    let empty = apply(&document, vec![0, 0]).await;
    assert_eq!((empty.sequence, empty.is_stored), (Sequence(0), false));
    let editor = new_editor();
    let update = typed(&editor, 0, "hello");
    let first = apply(&document, update.clone()).await;
    let again = apply(&document, update.clone()).await;
    assert_eq!(again.sequence, first.sequence);
    assert!(first.is_stored && !again.is_stored);
    // In one batch too.
    let more = typed(&editor, 5, "!");
    let (saved, _) = document
        .apply(vec![change(more.clone()), change(more), change(update)])
        .await;
    assert!(saved[0].sequence > first.sequence);
    assert_eq!(saved[1].sequence, saved[0].sequence);
    assert_eq!(saved[2].sequence, saved[0].sequence);
}

#[tokio::test]
async fn a_repeated_key_gets_the_first_sequence_and_with_other_content_a_conflict() {
    let documents = documents_on(engine(), &config::Documents::default());
    let document = documents.open(&topic("a")).unwrap();
    let editor = new_editor();
    let keyed = |update: Vec<u8>| Change {
        key: Some(Name::new("k").unwrap()),
        ..change(update)
    };
    let update = typed(&editor, 0, "a");
    let (first, _) = document.apply(vec![keyed(update.clone())]).await;
    apply(&document, typed(&editor, 1, "b")).await;
    let (again, _) = document.apply(vec![keyed(update)]).await;
    assert_eq!(first[0].sequence, again[0].sequence);
    let other = typed(&editor, 2, "c");
    let (saved, error) = document.apply(vec![keyed(other)]).await;
    assert!(saved.is_empty());
    assert!(
        matches!(error, Some(Error::KeyConflict { .. })),
        "{error:?}"
    );
    assert_eq!(text(&document).await, "ab");
}

#[tokio::test]
async fn what_comes_before_a_refused_update_is_stored_and_the_rest_not() {
    let documents = documents_on(engine(), &config::Documents::default());
    let document = documents.open(&topic("a")).unwrap();
    let editor = new_editor();
    let (one, two) = (typed(&editor, 0, "a"), typed(&editor, 1, "b"));
    let batch = vec![change(one), change(vec![9, 9, 9]), change(two)];
    let (saved, error) = document.apply(batch).await;
    assert_eq!(saved.len(), 1);
    assert!(matches!(error, Some(Error::Invalid(_))), "{error:?}");
    assert_eq!(text(&document).await, "a");
}

#[tokio::test]
async fn a_document_does_not_grow_beyond_its_limit() {
    let config = config::Documents {
        max_size: bytesize::ByteSize::kib(1),
        ..config::Documents::default()
    };
    let documents = documents_on(engine(), &config);
    let document = documents.open(&topic("a")).unwrap();
    let editor = new_editor();
    apply(&document, typed(&editor, 0, &"x".repeat(900))).await;
    let (saved, error) = document
        .apply(vec![change(typed(&editor, 0, &"y".repeat(900)))])
        .await;
    assert!(saved.is_empty());
    let limit = Error::Limit {
        what: "bytes of a document",
        limit: 1024,
    };
    assert_eq!(error, Some(limit));
    assert_eq!(text(&document).await, "x".repeat(900));
    // Editing goes on for ever in a document that stays small.
    let editor = new_editor();
    let other = documents.open(&topic("b")).unwrap();
    for _ in 0..100 {
        apply(&other, typed(&editor, 0, &"z".repeat(100))).await;
        apply(&other, erased(&editor, 0, 100)).await;
    }
    assert_eq!(text(&other).await, "");
}

#[tokio::test]
async fn documents_that_nobody_uses_give_way_to_others() {
    let config = config::Documents {
        max_open: 2,
        ..config::Documents::default()
    };
    let documents = documents_on(engine(), &config);
    let first = documents.open(&topic("a")).unwrap();
    apply(&first, typed(&new_editor(), 0, "first")).await;
    let second = documents.open(&topic("b")).unwrap();
    assert!(matches!(
        documents.open(&topic("c")).err(),
        Some(Error::Limit { limit: 2, .. })
    ));
    drop(first);
    let third = documents.open(&topic("c")).unwrap();
    assert_eq!(documents.0.registry().documents.len(), 2);
    drop((second, third));
    assert_eq!(text(&documents.open(&topic("a")).unwrap()).await, "first");
}

#[tokio::test]
async fn an_abandoned_call_leaves_the_document_whole() {
    let documents = documents_on(engine(), &config::Documents::default());
    let document = documents.open(&topic("a")).unwrap();
    let editor = new_editor();
    let mut expected = String::new();
    for number in 0..50 {
        let update = typed(&editor, 0, &number.to_string());
        expected.insert_str(0, &number.to_string());
        {
            let mut abandoned = Box::pin(document.apply(vec![change(update.clone())]));
            // Polled a few times, so that it stops in different places.
            for _ in 0..number % 7 {
                if futures::poll!(abandoned.as_mut()).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        // As its client does, having got no answer.
        apply(&document, update).await;
    }
    assert_eq!(text(&document).await, expected);
}

#[tokio::test]
async fn a_caller_that_is_not_polled_holds_nobody_up() {
    let documents = documents_on(engine(), &config::Documents::default());
    let document = documents.open(&topic("a")).unwrap();
    let mut stalled: Vec<_> = (0..3)
        .map(|number| {
            let change = change(typed(&new_editor(), 0, &number.to_string()));
            let document = document.clone();
            Box::pin(async move { document.apply(vec![change]).await })
        })
        .collect();
    for stalled in &mut stalled {
        assert!(futures::poll!(stalled.as_mut()).is_pending());
    }
    apply(&document, typed(&new_editor(), 0, "x")).await;
    assert_eq!(text(&document).await.len(), 4);
}

pub(super) async fn stored(documents: &Documents, topic: &Topic) -> (usize, usize) {
    let bounds = documents.0.topics.bounds(topic).await.unwrap();
    let limit = crate::log::Limit {
        records: usize::MAX,
        bytes: usize::MAX,
    };
    let page = documents.0.topics.read(topic, bounds.first, limit).await;
    let records = page.unwrap().records;
    let bytes = records.iter().map(|record| record.size()).sum();
    (records.len(), bytes)
}

#[tokio::test]
async fn a_long_edited_small_text_stays_small() {
    let engine = engine();
    let documents = documents_on(Arc::clone(&engine), &config::Documents::default());
    let document = documents.open(&topic("a")).unwrap();
    let editor = new_editor();
    apply(&document, typed(&editor, 0, &"0123456789".repeat(10))).await;
    for number in 0..10_000u32 {
        let at = number * 7 % 100;
        let insert = typed(&editor, at, "x");
        let erase = erased(&editor, number * 13 % 101, 1);
        let (saved, error) = document.apply(vec![change(insert), change(erase)]).await;
        assert_eq!((saved.len(), error), (2, None));
    }
    let (records, bytes) = stored(&documents, &topic("a")).await;
    assert!(records <= 501, "{records}");
    assert!(bytes < 256 * 1024, "{bytes}");
    let expected = text_of(&everything(&editor));
    assert_eq!(expected.len(), 100);
    assert_eq!(text(&document).await, expected);
    let again = documents_on(engine, &config::Documents::default());
    assert_eq!(text(&again.open(&topic("a")).unwrap()).await, expected);
}

#[tokio::test]
async fn compaction_loses_nothing_that_others_append_meanwhile() {
    let config = config::Documents {
        compact_after: 3,
        ..config::Documents::default()
    };
    let engine = engine();
    // Two nodes on one log.
    let one = documents_on(Arc::clone(&engine), &config);
    let two = documents_on(Arc::clone(&engine), &config);
    let (here, there) = (
        one.open(&topic("a")).unwrap(),
        two.open(&topic("a")).unwrap(),
    );
    let (ann, bob) = (new_editor(), new_editor());
    let mut tasks = tokio::task::JoinSet::new();
    for (document, editor, letter) in [(here.clone(), ann, "a"), (there.clone(), bob, "b")] {
        tasks.spawn(async move {
            for _ in 0..100 {
                let update = typed(&editor, 0, letter);
                let (saved, error) = document.apply(vec![change(update)]).await;
                assert_eq!((saved.len(), error), (1, None));
            }
        });
    }
    tasks.join_all().await;
    let text = text(&here).await;
    assert_eq!(text.matches('a').count(), 100);
    assert_eq!(text.matches('b').count(), 100);
    assert_eq!(super::tests::text(&there).await, text);
}

#[tokio::test]
async fn deep_nesting_overflows_no_stack() {
    let documents = documents_on(engine(), &config::Documents::default());
    let document = documents.open(&topic("deep")).unwrap();
    // A chain of arrays, each in the one before, and then the deletion of the outermost.
    let depth = 200_000u64;
    let mut update = vec![1];
    lib0::write_uint(depth, &mut update);
    update.extend([1, 0]);
    update.extend([7, 1, 1, b'r', 0]);
    for clock in 1..depth {
        update.extend([7, 0, 1]);
        lib0::write_uint(clock - 1, &mut update);
        update.push(0);
    }
    update.push(0);
    assert!(apply(&document, update).await.is_stored);
    assert!(apply(&document, vec![0, 1, 1, 1, 0, 1]).await.is_stored);
    assert!(document.state().await.unwrap().update.len() < 100);
}

/// What an offline editor does next.
#[derive(Debug, Clone)]
enum Step {
    Type(usize, u32, String),
    Erase(usize, u32, u32),
    /// Gives the server everything since the last time, each update on its own, in this order of the editor's updates.
    Send(usize, u64),
    /// Takes what the server has.
    Take(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..3usize;
    prop_oneof![
        4 => (who.clone(), any::<u32>(), "[a-z🙂é]{1,4}").prop_map(|(who, at, text)| Step::Type(who, at, text)),
        2 => (who.clone(), any::<u32>(), 1..4u32).prop_map(|(who, at, length)| Step::Erase(who, at, length)),
        1 => (who.clone(), any::<u64>()).prop_map(|(who, seed)| Step::Send(who, seed)),
        1 => who.prop_map(Step::Take),
    ]
}

/// An editor that is mostly offline.
struct Offline {
    doc: Doc,
    unsent: Vec<Vec<u8>>,
}

impl Offline {
    fn length(&self) -> u32 {
        let content = self.doc.get_or_insert_text("content");
        content.len(&self.doc.transact())
    }

    fn edit(&mut self, step: &Step) {
        let length = self.length();
        let update = match step {
            Step::Type(_, at, text) => typed(&self.doc, at % (length + 1), text),
            Step::Erase(_, at, count) if length > 0 => {
                let at = at % length;
                erased(&self.doc, at, (*count).min(length - at))
            }
            _ => return,
        };
        self.unsent.push(update);
    }

    async fn send(&mut self, document: &Document, seed: u64) {
        let mut updates = std::mem::take(&mut self.unsent);
        // Any order: what depends on what is not there yet waits.
        updates.sort_by_key(|update| {
            let bytes = update.iter().map(|byte| u64::from(*byte));
            bytes.fold(seed, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte))
        });
        let changes = updates.into_iter().map(change).collect();
        assert_eq!(document.apply(changes).await.1, None);
    }

    async fn take(&self, document: &Document) {
        use yrs::updates::encoder::Encode as _;
        let has = self.doc.transact().state_vector().encode_v1();
        let missing = document.missing(has.into()).await.unwrap();
        let update = Update::decode_v1(&missing).unwrap();
        self.doc.transact_mut().apply_update(update).unwrap();
    }

    fn text(&self) -> String {
        let content = self.doc.get_or_insert_text("content");
        content.get_string(&self.doc.transact())
    }
}

async fn converge(steps: Vec<Step>) {
    let config = config::Documents {
        compact_after: 7,
        ..config::Documents::default()
    };
    let engine = engine();
    let documents = documents_on(Arc::clone(&engine), &config);
    let document = documents.open(&topic("a")).unwrap();
    let mut editors = [(); 3].map(|()| Offline {
        doc: new_editor(),
        unsent: Vec::new(),
    });
    for step in &steps {
        match step {
            Step::Type(who, ..) | Step::Erase(who, ..) => editors[*who].edit(step),
            Step::Send(who, seed) => editors[*who].send(&document, *seed).await,
            Step::Take(who) => editors[*who].take(&document).await,
        }
    }
    for (seed, editor) in (0..).zip(&mut editors) {
        editor.send(&document, seed).await;
    }
    for editor in &editors {
        editor.take(&document).await;
    }
    let text = text(&document).await;
    for editor in &editors {
        assert_eq!(editor.text(), text);
    }
    let again = documents_on(engine, &config);
    let again = again.open(&topic("a")).unwrap();
    assert_eq!(super::tests::text(&again).await, text);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn offline_editors_converge_whatever_comes_first(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(converge(steps));
    }
}

/// Updates of a document with everything in it, whose mutations are tried on it.
fn samples() -> Vec<Vec<u8>> {
    let doc = new_editor();
    let mut updates = vec![typed(&doc, 0, "héllo 🌍 world"), erased(&doc, 2, 5)];
    {
        let content = doc.get_or_insert_text("content");
        let mut transaction = doc.transact_mut();
        let bold = [("bold".into(), true.into())];
        content.format(&mut transaction, 1, 3, bold.into_iter().collect());
        updates.push(transaction.encode_update_v1());
    }
    {
        let mut transaction = doc.transact_mut();
        let map = transaction.get_or_insert_map("map");
        map.insert(&mut transaction, "a", 1);
        map.insert(&mut transaction, "a", 2);
        let list = map.insert(&mut transaction, "list", ArrayPrelim::from([1, 2, 3]));
        list.remove(&mut transaction, 1);
        map.remove(&mut transaction, "list");
        updates.push(transaction.encode_update_v1());
    }
    updates.push(everything(&doc));
    updates
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_break_the_service(
        bytes in prop::collection::vec(any::<u8>(), 0..64),
        which in 0..5usize,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let samples = samples();
        let mut mutated = samples[which].clone();
        for (index, byte) in flips {
            let at = index.index(mutated.len());
            mutated[at] = byte;
        }
        for update in [bytes, mutated] {
            let mut replica = replica::Replica::new(1 << 20);
            replica.apply(&samples[0]).unwrap();
            replica.apply(&samples[1]).unwrap();
            match replica.apply(&update) {
                Ok(_) => {
                    // What is taken can be told and read again.
                    let state = replica.state().unwrap();
                    let mut again = replica::Replica::new(1 << 20);
                    prop_assert_eq!(again.replay(&state), Ok(()));
                    prop_assert!(replica.missing(&replica.state_vector().unwrap()).is_some());
                }
                Err(refused) if refused.is_spoiling() => {}
                Err(_) => prop_assert_eq!(replica.apply(&samples[0]), Ok(false)),
            }
            let _ = replica::Replica::new(1 << 20).missing(&update);
            let _ = is_awareness(&update);
        }
    }
}

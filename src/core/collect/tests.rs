//! What is collected, counted and dropped.

use prometheus::TextEncoder;

use super::*;

const TTL: Duration = Duration::from_secs(60);

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let pairs = pairs.iter();
    pairs
        .map(|(name, value)| ((*name).into(), (*value).into()))
        .collect()
}

fn sample(name: &str, kind: Kind, pairs: &[(&str, &str)], value: f64) -> Sample {
    Sample::new(name, kind, &labels(pairs), value).unwrap()
}

fn state(max_series: usize) -> State {
    State::new(&config::Collect {
        max_series,
        series_ttl: TTL,
    })
}

fn text(state: &State) -> String {
    TextEncoder::new()
        .encode_to_string(&state.families())
        .unwrap()
}

fn stored(state: &mut State, sample: Sample, now: Instant) -> Result<(), Reason> {
    state
        .reserve(&sample, now)
        .map_err(|refusal| refusal.reason)?;
    state.show(sample, now);
    Ok(())
}

#[test]
fn a_gauge_is_replaced_and_a_counter_grows() {
    let (mut state, now) = (state(10), Instant::now());
    for value in [5.0, 3.0] {
        let pairs = [("host", "a\"\n\\b")];
        stored(&mut state, sample("heat", Kind::Gauge, &pairs, value), now).unwrap();
        stored(
            &mut state,
            sample("hits_total", Kind::Counter, &[], value),
            now,
        )
        .unwrap();
    }
    let text = text(&state);
    assert!(text.contains("heat{host=\"a\\\"\\n\\\\b\"} 3\n"), "{text}");
    assert!(
        text.contains("# TYPE hits_total counter\nhits_total 8\n"),
        "{text}"
    );
}

#[test]
fn a_reserved_series_shows_nothing_before_it_is_stored() {
    let (mut state, now) = (state(1), Instant::now());
    state
        .reserve(&sample("heat", Kind::Gauge, &[], 1.0), now)
        .unwrap();
    assert_eq!(text(&state), "");
    let other = state.reserve(&sample("cold", Kind::Gauge, &[], 1.0), now);
    assert_eq!(other.unwrap_err().reason, Reason::Limit);
}

#[test]
fn series_are_limited_and_forgotten() {
    let (mut state, begin) = (state(2), Instant::now());
    let later = begin + TTL / 2;
    stored(&mut state, sample("a", Kind::Gauge, &[], 1.0), begin).unwrap();
    stored(&mut state, sample("b", Kind::Gauge, &[], 1.0), later).unwrap();
    let third = sample("c", Kind::Counter, &[], 1.0);
    assert_eq!(stored(&mut state, third.clone(), later), Err(Reason::Limit));
    // A known series goes on however many there are.
    stored(&mut state, sample("b", Kind::Gauge, &[], 2.0), later).unwrap();
    stored(&mut state, third, begin + TTL).unwrap();
    let text = text(&state);
    assert!(
        text.contains("\nb 2\n") && text.contains("\nc 1\n") && !text.contains("\na "),
        "{text}"
    );
}

#[test]
fn a_metric_keeps_its_kind_until_it_is_forgotten() {
    let (mut state, begin) = (state(2), Instant::now());
    stored(&mut state, sample("a", Kind::Gauge, &[], 1.0), begin).unwrap();
    let other = sample("a", Kind::Counter, &[("x", "y")], 1.0);
    assert_eq!(stored(&mut state, other.clone(), begin), Err(Reason::Kind));
    stored(&mut state, other, begin + TTL).unwrap();
    assert_eq!(state.count, 1);
}

#[test]
fn labels_may_differ_and_empty_ones_are_none() {
    let (mut state, now) = (state(10), Instant::now());
    stored(&mut state, sample("a", Kind::Gauge, &[("x", "")], 1.0), now).unwrap();
    stored(&mut state, sample("a", Kind::Gauge, &[], 2.0), now).unwrap();
    stored(
        &mut state,
        sample("a", Kind::Gauge, &[("x", "1"), ("y", "2")], 3.0),
        now,
    )
    .unwrap();
    assert_eq!(state.count, 2);
    assert!(
        text(&state).contains("a 2\na{x=\"1\",y=\"2\"} 3\n")
            || text(&state).contains("a{x=\"1\",y=\"2\"} 3\na 2\n")
    );
}

#[test]
fn names_and_labels_are_those_of_prometheus() {
    let reason = |name: &str, pairs: &[(&str, &str)]| {
        let made = Sample::new(name, Kind::Gauge, &labels(pairs), f64::NAN);
        made.err().map(|refusal| refusal.reason)
    };
    for good in ["a", "_a:B9", ":x", "weird", "updates"] {
        assert_eq!(reason(good, &[("_a9", "ü\n")]), None, "{good}");
    }
    let long = "x".repeat(257);
    let bad = [
        "",
        " ",
        "9a",
        "a-b",
        "ä",
        "a b",
        "a\n",
        "weir_x",
        "grpc_x",
        "process_x",
        "tokio_x",
        "up",
        "scrape_x",
        &long,
    ];
    for bad in bad {
        assert_eq!(reason(bad, &[]), Some(Reason::Name), "{bad}");
    }
    let long_value = "v".repeat(1025);
    for (name, value) in [
        ("", "v"),
        ("a:b", "v"),
        ("__name__", "v"),
        ("le", "v"),
        ("9", "v"),
        (&long, "v"),
        ("a", &long_value),
    ] {
        assert_eq!(
            reason("a", &[(name, value)]),
            Some(Reason::Labels),
            "{name}"
        );
    }
    let many: BTreeMap<_, _> = (0..33)
        .map(|number| (format!("l{number}"), "v".to_owned()))
        .collect();
    assert_eq!(
        Sample::new("a", Kind::Gauge, &many, 1.0)
            .unwrap_err()
            .reason,
        Reason::Labels
    );
}

#[test]
fn a_counter_grows_by_finite_amounts() {
    for bad in [-1.0, f64::NAN, f64::INFINITY] {
        let refusal = Sample::new("a", Kind::Counter, &labels(&[]), bad).unwrap_err();
        assert_eq!(refusal.reason, Reason::Value);
    }
}

#[test]
fn abandoned_keys_are_bounded_and_the_newest_stay() {
    let mut abandoned = Abandoned::default();
    for number in 0..=MAX_ABANDONED {
        abandoned.add(number.to_string().into());
    }
    abandoned.add("7".into());
    assert_eq!(
        (abandoned.keys.len(), abandoned.order.len()),
        (MAX_ABANDONED, MAX_ABANDONED)
    );
    assert!(!abandoned.remove(Some("0")) && !abandoned.remove(None));
    assert!(abandoned.remove(Some("7")) && !abandoned.remove(Some("7")));
    assert!(abandoned.remove(Some("1")));
}

#[test]
fn a_repetition_shows_only_what_its_first_call_did_not() {
    let metrics = Metrics::new();
    let collect = Collect::new(&config::Collect::default(), &metrics).unwrap();
    let hit = || sample("hits_total", Kind::Counter, &[], 1.0);
    let shown = || text(&collect.0.lock()).lines().last().map(str::to_owned);
    collect.repeated(hit(), Some("k"));
    assert_eq!(shown(), None);
    collect.abandoned("k".into());
    collect.repeated(hit(), Some("k"));
    collect.repeated(hit(), Some("k"));
    assert_eq!(shown().as_deref(), Some("hits_total 1"));
    // It was not stored after all.
    collect.abandoned("l".into());
    collect.stored(hit(), Some("l"));
    collect.repeated(hit(), Some("l"));
    assert_eq!(shown().as_deref(), Some("hits_total 2"));
}

/// So that no client can send what looks like the service's own.
#[test]
fn every_metric_of_the_service_has_a_reserved_prefix() {
    let metrics = Metrics::new();
    let settings = config::Collect::default();
    let _collect = Collect::new(&settings, &metrics).unwrap();
    metrics.collect_rejected.with_label_values(&["name"]).inc();
    let gathered = metrics.registry().gather();
    let names: Vec<_> = gathered.iter().map(|family| family.name()).collect();
    assert!(names.contains(&"weir_collect_series"), "{names:?}");
    for name in names {
        assert!(
            RESERVED_PREFIXES
                .iter()
                .any(|prefix| name.starts_with(prefix)),
            "{name}"
        );
    }
}

use std::{fs, time::Duration};

use bytesize::ByteSize;

use super::{Config, EngineKind, Problems, Sources, check, load, render::redact, size, to_toml};

fn sources(dir: &tempfile::TempDir) -> Sources {
    Sources {
        dir: dir.path().to_owned(),
        ..Sources::default()
    }
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect()
}

fn with_flags(flags: &[(&str, &str)]) -> Result<Config, Problems> {
    let dir = tempfile::tempdir().unwrap();
    let flags = pairs(flags);
    load(&Sources {
        flags,
        ..sources(&dir)
    })
    .map(|loaded| loaded.config)
}

/// The lines that the flags lead to.
fn lines(flags: &[(&str, &str)]) -> Vec<String> {
    with_flags(flags)
        .unwrap_err()
        .to_string()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn defaults_are_allowed() {
    assert_eq!(Config::default().validate(), Ok(()));
    assert_eq!(with_flags(&[]).unwrap(), Config::default());
}

#[test]
fn later_sources_win_key_by_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = "[server]\nmax_connections = 7\ninstance_id = \"file\"\nreflection = false\n[log.retention.canary]\nage = \"5s\"";
    fs::write(dir.path().join("weir.toml"), file).unwrap();
    let loaded = load(&Sources {
        env: pairs(&[
            ("WEIR__SERVER__INSTANCE_ID", "variable"),
            ("WEIR__LOG__RETENTION__ROOM__AGE", "2h"),
            ("WEIR_SERVER_PORT", "of somebody else"),
            ("PATH", "/bin"),
        ]),
        flags: pairs(&[("server.instance_id", "flag")]),
        ..sources(&dir)
    })
    .unwrap();
    let Config { server, log, .. } = loaded.config;
    assert_eq!((server.max_connections, server.reflection), (7, false));
    assert_eq!(server.instance_id, "flag");
    assert_eq!(log.retention.room.age, Duration::from_secs(7200));
    assert_eq!(log.retention.canary.age, Duration::from_secs(5));
    assert_eq!(
        log.retention.canary.bytes,
        ByteSize::mib(1),
        "a space keeps its own defaults"
    );
    assert_eq!(loaded.sources, "defaults, weir.toml, 2 variables, 1 flag");
}

#[test]
fn lists_in_variables_are_separated_by_commas() {
    let grpc = |text| with_flags(&[("server.grpc", text)]).unwrap().server.grpc;
    assert_eq!(grpc("[::1]:1, 127.0.0.1:2").len(), 2);
    assert_eq!(grpc("127.0.0.1:0").len(), 1);
    assert!(
        with_flags(&[("cors.allowed_origins", "")])
            .unwrap()
            .cors
            .allowed_origins
            .is_empty()
    );
}

#[test]
fn a_shorter_list_replaces_the_longer_default() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("weir.toml"),
        "[server]\ngrpc = [\"127.0.0.1:1\"]",
    )
    .unwrap();
    assert_eq!(load(&sources(&dir)).unwrap().config.server.grpc.len(), 1);
    fs::write(dir.path().join("weir.toml"), "[cors]\nallowed_origins = []").unwrap();
    assert!(
        load(&sources(&dir))
            .unwrap()
            .config
            .cors
            .allowed_origins
            .is_empty()
    );
}

#[test]
fn a_named_file_has_to_exist() {
    let dir = tempfile::tempdir().unwrap();
    let file = Some("missing.toml".into());
    let problems = load(&Sources {
        file,
        ..sources(&dir)
    })
    .unwrap_err()
    .to_string();
    assert!(
        problems.starts_with("missing.toml: cannot be read: "),
        "{problems}"
    );
}

#[test]
fn a_file_that_is_not_toml_is_named_with_the_line() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("weir.toml"), "[server]\ngrpc = [").unwrap();
    let problems = load(&sources(&dir)).unwrap_err().to_string();
    assert!(problems.starts_with("weir.toml: "), "{problems}");
    assert!(problems.contains("line 2"), "{problems}");
}

#[test]
fn every_problem_is_reported_at_once_with_its_origin() {
    let dir = tempfile::tempdir().unwrap();
    let file = "[server]\nhttp = 8080\nmax_connections = 0\n[sever]\ngrpc = []\n[log]\nengine = \"embeded\"\n[empty]\n";
    fs::write(dir.path().join("weir.toml"), file).unwrap();
    let problems = load(&Sources {
        env: pairs(&[
            ("WEIR__LOG__QUEUE", "many"),
            ("WEIR__SEVER__HTTP", "1"),
            ("WEIR__DRAIN", "10s"),
        ]),
        flags: pairs(&[
            ("server.reflection", "yes"),
            ("hub.tail", "-1"),
            ("drain.delay", "30s"),
        ]),
        ..sources(&dir)
    });
    let expected = r#"weir.toml: empty = a table: unknown key; `weir config print` shows all
weir.toml: log.engine = "embeded": must be one of embedded, jetstream, memory
weir.toml: server.http = 8080: must be an address such as 127.0.0.1:8080
weir.toml: sever.grpc = []: unknown key; did you mean server.grpc?
environment WEIR__DRAIN: drain = "10s": is a section; set the keys below it
environment WEIR__LOG__QUEUE: log.queue = "many": must be a size such as 64KiB or 10GiB (at least 1KiB)
environment WEIR__SEVER__HTTP: sever.http = "1": unknown key; did you mean WEIR__SERVER__HTTP?
--set: server.reflection = "yes": must be true or false
--set: hub.tail = "-1": must be a size such as 64KiB or 10GiB (at least 1KiB)
weir.toml: server.max_connections = 0: must be a whole number (1 to 10000000)
--set: drain.delay = "30s": must be such that drain.delay, drain.spread and 5s for the log together are at most drain.timeout"#;
    assert_eq!(problems.unwrap_err().to_string(), expected);
}

#[test]
fn replicas_know_what_a_room_was_told_for_longer_than_a_lease() {
    let with = |engine| with_flags(&[("log.engine", engine), ("presence.lease", "4m")]);
    assert!(with("embedded").is_ok());
    let problems = with("jetstream").unwrap_err().to_string();
    assert!(
        problems.contains("at most a third of log.dedupe_window"),
        "{problems}"
    );
}

#[test]
fn a_key_in_the_wrong_section_is_found() {
    let text = lines(&[("server.log_level", "info")]).join("");
    assert!(text.contains("did you mean telemetry.log_level?"), "{text}");
}

#[test]
fn wrong_types_and_ranges_are_refused() {
    for (key, values) in [
        (
            "server.grpc",
            &[
                "",
                "localhost:1",
                "127.0.0.1:1,127.0.0.1:1",
                "127.0.0.1:8080",
            ][..],
        ),
        ("server.http", &["0.0.0.0:50051", "127.0.0.1:9464"]),
        ("server.instance_id", &["", "  ", &"x".repeat(257)]),
        (
            "server.max_connections",
            &["0", "-1", "3.5", "true", "1e3", "99999999999999999999"],
        ),
        ("server.max_streams_per_connection", &["0", "4294967296"]),
        ("server.max_stream_age", &["0s", "10", "fast", "-1s"]),
        ("server.connection_window", &["128KiB", "2GiB"]),
        ("processing.lateness", &["17h", "-1s"]),
        ("processing.window", &["59ms", "0s"]),
        ("server.stream_window", &["0", "64MiB"]),
        (
            "cors.allowed_origins",
            &[
                "example.org",
                "https://a.example/path",
                "*,https://",
                "https://u@a.example",
            ],
        ),
        ("log.dedupe_window", &["0s"]),
        ("log.queue", &["0", "5MiB"]),
        ("log.retention.room.bytes", &["0"]),
        ("hub.total", &["512KiB"]),
        ("limits.message", &["0", "100MiB"]),
        ("drain.spread", &["6s"]),
        ("drain.timeout", &["0s"]),
        ("canary.interval", &["0s"]),
        ("telemetry.log_format", &["xml", "TEXT"]),
        ("telemetry.log_level", &["inof", "weir=loud", "info,wier"]),
        (
            "telemetry.otlp_endpoint",
            &["collector:4317", "ftp://collector", "http://"],
        ),
        ("telemetry.trace_ratio", &["1.5", "-0.1", "NaN", "half"]),
    ] {
        for value in values {
            let found = lines(&[(key, value)]);
            assert!(
                found
                    .iter()
                    .all(|line| line.starts_with(&format!("--set: {key} = "))),
                "{found:?}"
            );
        }
    }
}

#[test]
fn sensible_values_are_accepted() {
    for (key, value) in [
        ("server.http", "127.0.0.1:0"),
        ("server.http", "[::1]:50051"),
        (
            "cors.allowed_origins",
            "https://a.example,http://localhost:3000",
        ),
        ("log.dir", "/data"),
        ("log.min_free", "0"),
        ("log.queue", "16MB"),
        ("limits.message", "1048576"),
        ("drain.spread", "5s"),
        ("telemetry.log_level", "warn,weir=debug,h2[conn]=trace"),
        ("telemetry.log_level", "off"),
        (
            "telemetry.otlp_endpoint",
            "https://collector.example:4317/path",
        ),
        ("telemetry.trace_ratio", "0"),
        ("files.store", "/srv/files"),
        ("files.store", "s3://bucket/some/prefix"),
        ("files.url", "https://files.example.org/weir"),
    ] {
        assert_eq!(with_flags(&[(key, value)]).err(), None, "{key} = {value}");
    }
    let memory = with_flags(&[("log.engine", "memory")]).unwrap();
    assert_eq!(memory.log.engine, EngineKind::Memory);
}

#[test]
fn a_broken_value_raises_no_further_problem() {
    assert_eq!(
        lines(&[("limits.message", "large"), ("log.queue", "1KiB")]).len(),
        1
    );
}

#[test]
fn rules_see_settings_that_were_not_loaded() {
    let mut config = Config::default();
    config.limits.rooms_per_stream = 0;
    let problems = config.validate().unwrap_err().to_string();
    assert_eq!(
        problems,
        "default: limits.rooms_per_stream = 0: must be a whole number (1 to 10000)"
    );
    assert_eq!(check::all(&config).len(), 1);
}

#[test]
fn printed_settings_load_to_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.server.instance_id = "a \"quoted\" name".into();
    config.log.retention.room.bytes = ByteSize::b(1_234_567);
    config.log.retention.room.age = Duration::from_millis(5_400_250);
    config.cors.allowed_origins.clear();
    for commented in [false, true] {
        fs::write(dir.path().join("weir.toml"), to_toml(&config, commented)).unwrap();
        assert_eq!(load(&sources(&dir)).unwrap().config, config);
    }
}

#[test]
fn sizes_are_written_without_loss() {
    let shown = [0, 1, 1023, 1024, 1536, 1 << 20, 3 << 30, 1 << 40]
        .map(|bytes| size::exact(ByteSize::b(bytes)));
    assert_eq!(
        shown,
        ["0B", "1B", "1023B", "1KiB", "1536B", "1MiB", "3GiB", "1TiB"]
    );
}

#[test]
fn credentials_in_urls_are_redacted() {
    assert_eq!(
        redact("http://me:secret@host:1/a@b"),
        "http://***@host:1/a@b"
    );
    assert_eq!(redact("http://host/a@b"), "http://host/a@b");
    let text = lines(&[("telemetry.otlp_endpoint", "ftp://me:secret@host")]).join("");
    assert!(!text.contains("secret"), "{text}");
}

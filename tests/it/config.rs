//! The shipped example file is what the code says.

use std::{fs, path::Path};

use weir::config::{Config, Sources, entries, load, to_markdown, to_toml};

const EXAMPLE: &str = "weir.example.toml";

fn path() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(EXAMPLE)
}

const REFERENCE: &str = "docs/configuration.md";

#[test]
fn the_reference_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(REFERENCE);
    assert!(
        fs::read_to_string(path).unwrap() == to_markdown(),
        "{REFERENCE} differs from the settings; rewrite it: cargo run -- config reference > {REFERENCE}"
    );
    for entry in entries() {
        let name = entry.key.rsplit('.').next().unwrap_or_default();
        let is_there = match entry.allowed {
            Some(_) => to_markdown().contains(&format!("| `{name}` |")),
            None => true,
        };
        assert!(is_there, "{}", entry.key);
    }
}

#[test]
fn the_example_file_is_up_to_date() {
    let shipped = fs::read_to_string(path()).unwrap();
    assert!(
        shipped == to_toml(&Config::default(), true),
        "{EXAMPLE} differs from the settings; rewrite it: cargo run -- config example > {EXAMPLE}"
    );
}

#[test]
fn the_example_file_loads_to_the_defaults() {
    let sources = Sources {
        file: Some(path()),
        ..Sources::default()
    };
    assert_eq!(load(&sources).unwrap().config, Config::default());
}

#[test]
fn the_example_file_holds_every_key_and_its_variable() {
    let shipped = fs::read_to_string(path()).unwrap();
    for entry in entries().iter().filter(|entry| entry.allowed.is_some()) {
        let name = entry.key.rsplit('.').next().unwrap();
        assert!(shipped.contains(&format!("\n{name} = ")), "{}", entry.key);
        assert!(
            shipped.contains(&format!(". {}\n", entry.variable())),
            "{}",
            entry.key
        );
        assert!(!entry.about.is_empty(), "{} has no text", entry.key);
    }
}

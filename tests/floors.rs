//! A module uses only floors below its own.
//!
//! The story: `manager` once needed "just the config of the server", and from then on neither
//! could be read, tested or embedded without the other. The table is the one of `lib.rs`.

use std::fs;
use std::path::{Path, PathBuf};

/// Rooms by floor; the longest name that fits a module decides.
const FLOORS: &[(&str, u8)] = &[
    ("access", 0),
    ("config", 0),
    ("error", 0),
    ("protocol", 0),
    ("frame", 0),
    ("history", 0),
    ("http", 0),
    ("metrics", 0),
    ("stream", 0),
    ("usage", 0),
    ("backplane", 1),
    ("manager", 1),
    ("store", 1),
    ("journal", 2),
    ("server::rest", 3),
    ("server::relay", 3),
    ("server::socket", 3),
    ("server::stream", 3),
    ("server::subscriber", 2),
    ("watch", 3),
    ("client", 3),
    ("server", 4),
    ("main", 5),
    ("cli", 5),
    ("bench", 4),
    ("lib", 5),
];

#[test]
fn a_module_uses_only_floors_below_its_own() {
    let mut breaches = Vec::new();
    for file in sources(Path::new("src")) {
        let module = module_of(&file);
        let (room, floor) = room(&module)
            .unwrap_or_else(|| panic!("{module} is on no floor: add it to lib.rs and here"));
        let text = fs::read_to_string(&file).expect("a source file");
        for used in uses(&text, &module) {
            let Some((other, below)) = self::room(&used) else {
                continue;
            };
            let same_floor_zero = floor == 0 && below == 0;
            if other != room && below >= floor && !same_floor_zero {
                breaches.push(format!(
                    "{module} (floor {floor}) uses {used} (floor {below})"
                ));
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn the_breaches_that_matter_are_seen() {
    let text = "use crate::server::Server;\nuse super::relay::{Relay, x};\n    use crate::{frame, journal::Journal};\n";
    let used = uses(text, "server::rest::call");
    assert_eq!(
        used,
        ["server::Server", "server::rest::relay", "frame", "journal"]
    );
    assert_eq!(room("server::rest::call"), Some(("server::rest", 3)));
    assert_eq!(room("server::listener"), Some(("server", 4)));
}

#[test]
fn only_their_rooms_know_the_big_dependencies() {
    for (dependency, rooms) in [
        ("tiny_http", &["server::rest"][..]),
        ("rusqlite", &["store"]),
        ("tungstenite", &["server::socket", "bench", "client"]),
        ("redis", &["backplane"]),
        ("clap", &["cli", "bench"]),
        ("rustls", &["stream", "client", "backplane::redis"]),
        ("signal_hook", &["cli"]),
        ("listenfd", &["cli"]),
        ("clap_complete", &["cli"]),
        ("clap_mangen", &["cli"]),
        ("sha2", &["access", "server::rest"]),
        ("subtle", &["access"]),
        ("getrandom", &["access", "backplane"]),
    ] {
        for file in sources(Path::new("src")) {
            let module = module_of(&file);
            let text = fs::read_to_string(&file).expect("a source file");
            let code = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"));
            let known = code
                .into_iter()
                .any(|line| line.contains(&format!("{dependency}::")));
            let allowed = rooms
                .iter()
                .any(|room| module == *room || module.starts_with(&format!("{room}::")));
            assert!(
                !known || allowed,
                "{module} uses {dependency}, which is for {rooms:?}"
            );
        }
    }
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("the tests run where Cargo.toml is") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// `src/server/rest/mod.rs` is `server::rest`.
fn module_of(file: &Path) -> String {
    let path = file
        .strip_prefix("src")
        .expect("a source")
        .with_extension("");
    let names: Vec<_> = path
        .iter()
        .map(|name| name.to_str().expect("ASCII names"))
        .collect();
    names.join("::").trim_end_matches("::mod").to_owned()
}

fn room(module: &str) -> Option<(&'static str, u8)> {
    FLOORS
        .iter()
        .filter(|(room, _)| module == *room || module.starts_with(&format!("{room}::")))
        .max_by_key(|(room, _)| room.len())
        .copied()
}

/// The modules of this crate that the `use` lines name, as paths from the crate's root.
fn uses(text: &str, module: &str) -> Vec<String> {
    let mut used = Vec::new();
    for statement in text.split(';') {
        let Some(at) = statement.rfind("use ") else {
            continue;
        };
        let path: String = statement[at + 4..].split_whitespace().collect();
        let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
        if let Some(list) = path.strip_prefix("crate::{") {
            used.extend(
                list.trim_end_matches('}')
                    .split(',')
                    .map(|item| first(item).to_owned()),
            );
        } else if let Some(rest) = path.strip_prefix("crate::") {
            used.push(until_list(rest));
        } else if let Some(rest) = path.strip_prefix("super::").filter(|rest| *rest != "*") {
            used.push(
                format!("{parent}::{}", first(rest))
                    .trim_start_matches("::")
                    .to_owned(),
            );
        }
    }
    used
}

fn first(path: &str) -> &str {
    path.split([':', '{', '}']).next().unwrap_or_default()
}

fn until_list(path: &str) -> String {
    path.split("::{").next().unwrap_or_default().to_owned()
}

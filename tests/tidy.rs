//! Taste that a machine can check: purity of the cores, sizes of files, nothing left half done.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Folders of crates with a pure core, as far as there are such crates.
const CORES: [&str; 8] = [
    "wire",
    "paxos",
    "master",
    "backup",
    "coordinator",
    "client",
    "control",
    "server",
];
/// Folders of other crates in which the same holds.
const PURE_FOLDERS: [&str; 2] = ["rpc/src/hello/", "rpc/src/wires/"];
/// Names that a core must not use: clocks, sockets, files, threads, randomness, random maps.
const IMPURE: [&str; 12] = [
    "std::time::Instant",
    "time::{Duration, Instant",
    "Instant::now",
    "SystemTime",
    "std::net",
    "std::fs",
    "std::thread",
    "tokio",
    "getrandom",
    "RandomState",
    "std::collections::HashMap",
    "std::collections::HashSet",
];
/// Files outside a shell folder that are compiled with the shell only.
const SHELL_FILES: [&str; 1] = ["client/src/client.rs"];
/// The one crate with `unsafe` in it.
const UNSAFE_CRATE: &str = "memory";
/// Files longer than this usually hold two ideas.
const MAX_LINES: usize = 800;

struct Source {
    /// From the repository's root, with `/`.
    path: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut pending: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" {
                    pending.push(path);
                }
            } else if name.ends_with(".rs") {
                let relative = path
                    .strip_prefix(root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                found.push(Source {
                    path: relative,
                    text: fs::read_to_string(&path).unwrap(),
                });
            }
        }
    }
    assert!(found.len() > 50, "the sources were not found");
    found
}

/// Fails with all findings at once.
fn assert_none(rule: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{rule}:\n{}", findings.join("\n"));
}

/// What is compiled into the program, without the tests at the file's end and without comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
        .take_while(|(_, line)| *line != "#[cfg(test)]")
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn is_core(path: &str) -> bool {
    if PURE_FOLDERS.iter().any(|folder| path.starts_with(folder)) {
        return true;
    }
    let Some((folder, rest)) = path.split_once('/') else {
        return false;
    };
    let Some(inside) = rest.strip_prefix("src/") else {
        return false;
    };
    let shell = inside.starts_with("shell/");
    let tests = inside.ends_with("tests.rs") || inside.contains("tests/");
    CORES.contains(&folder) && !shell && !tests && !SHELL_FILES.contains(&path)
}

#[test]
fn cores_name_no_clock_socket_file_thread_or_random_source() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| is_core(&source.path)) {
        for (number, line) in code(&source.text) {
            for name in IMPURE.iter().filter(|name| line.contains(**name)) {
                findings.push(format!("{}:{number}: {name}", source.path));
            }
        }
    }
    assert_none("only shells touch the world", &findings);
}

#[test]
fn every_crate_but_one_forbids_unsafe() {
    let mut findings = Vec::new();
    for source in sources() {
        let root = source.path.ends_with("src/lib.rs") || source.path.ends_with("/main.rs");
        let tests = source.path.starts_with("tests/") || source.path.contains("/tests/");
        let allowed = source.path.starts_with(UNSAFE_CRATE);
        if root && !tests && !allowed && !source.text.contains("#![forbid(unsafe_code)]") {
            findings.push(source.path);
        }
    }
    assert_none("a crate root opens with #![forbid(unsafe_code)]", &findings);
}

#[test]
fn nothing_is_left_half_done() {
    let marks = [
        ["todo", "!("].concat(),
        ["unimplemented", "!("].concat(),
        ["FIX", "ME"].concat(),
    ];
    let mut findings = Vec::new();
    for source in sources() {
        for (number, line) in source.text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                findings.push(format!("{}:{}", source.path, number + 1));
            }
        }
    }
    assert_none("no unfinished places", &findings);
}

#[test]
fn no_file_is_longer_than_one_idea_needs() {
    let findings: Vec<String> = sources()
        .iter()
        .map(|source| (&source.path, source.text.lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(path, lines)| format!("{path}: {lines} lines"))
        .collect();
    assert_none("files have at most 800 lines", &findings);
}

#[test]
fn a_module_with_a_folder_is_the_folders_mod_rs() {
    let all = sources();
    let beside = |source: &&Source| {
        let folder = source.path.trim_end_matches(".rs").to_owned() + "/";
        source.path.contains("/src/") && all.iter().any(|other| other.path.starts_with(&folder))
    };
    let findings: Vec<String> = all.iter().filter(beside).map(|s| s.path.clone()).collect();
    assert_none("one convention for modules: folder/mod.rs", &findings);
}

#[test]
fn every_file_says_what_it_is() {
    let findings: Vec<String> = sources()
        .iter()
        .filter(|source| !source.text.starts_with("//!") && !source.path.ends_with("build.rs"))
        .map(|source| source.path.clone())
        .collect();
    assert_none("a file opens with //!", &findings);
}

#[test]
fn no_source_names_a_place_on_somebodys_machine() {
    let places = ["/home", "/root", "/Users", "/work"].map(|place| format!("{place}/"));
    let mut findings = Vec::new();
    for source in sources() {
        for (number, line) in source.text.lines().enumerate() {
            if places.iter().any(|place| line.contains(place)) {
                findings.push(format!("{}:{}", source.path, number + 1));
            }
        }
    }
    assert_none("no local paths", &findings);
}

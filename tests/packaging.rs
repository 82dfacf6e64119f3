//! What comes with the program for those who install it: completions, pages of the manual, and
//! systemd's units. Each is read by the program that it is for, where that is installed.

mod common;

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use common::cli::threadcast;
use common::system::skipped;

fn printed(args: &[&str]) -> String {
    let run = threadcast(args).output().expect("the program runs");
    assert!(run.status.success(), "{args:?}: {run:?}");
    assert_eq!(run.stderr, b"", "{args:?}");
    String::from_utf8(run.stdout).expect("text")
}

/// Gives a program this text; `None` when it is not installed.
fn fed(program: &str, args: &[&str], text: &str) -> Option<Output> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    let mut input = child.stdin.take().expect("a pipe");
    let text = text.to_owned();
    let writing = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let run = child.wait_with_output().expect("it ends");
    writing.join().expect("no panic").expect("it reads all");
    Some(run)
}

#[test]
fn completions_are_scripts_that_their_shell_reads_and_know_every_command_and_flag() {
    for (shell, check) in [
        ("bash", &["-n"][..]),
        ("zsh", &["-n"]),
        ("fish", &["--no-execute"]),
    ] {
        let script = printed(&["completions", shell]);
        let flag = if shell == "fish" {
            "max-subscribers"
        } else {
            "--max-subscribers"
        };
        for word in ["bench", "pub", "sub", "token", flag] {
            assert!(script.contains(word), "{word} is not in {shell}'s");
        }
        match fed(shell, check, &script) {
            Some(run) => assert!(
                run.status.success() && run.stderr.is_empty(),
                "{shell}: {run:?}"
            ),
            None => skipped(&format!("{shell} is not installed")),
        }
    }
}

#[test]
fn bash_completes_commands_and_flags() {
    let script = printed(&["completions", "bash"]);
    let ask = r#"
        complete_words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            _threadcast threadcast "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"; echo "${COMPREPLY[@]}"; }
        complete_words threadcast be
        complete_words threadcast --max-subs
        complete_words threadcast token n
    "#;
    let run = fed("bash", &[], &(script + ask)).expect("bash is installed");
    assert_eq!(
        String::from_utf8_lossy(&run.stdout),
        "bench\n--max-subscribers\nnew\n",
        "{run:?}"
    );
}

#[test]
fn a_page_of_the_manual_has_every_flag_and_is_rendered_without_a_warning() {
    for (command, expected) in [
        (&[][..], "--max-db-bytes"),
        (&[], "THREADCAST_MAX_DB_BYTES"),
        (&["sub"], "--since"),
        (&["token", "new"], "--scope"),
    ] {
        let page = printed(&[&["man"], command].concat());
        assert!(page.contains(&expected.replace('-', "\\-")), "{page}");
        let Some(run) = fed("groff", &["-man", "-Tutf8", "-ww", "-z"], &page) else {
            skipped("groff is not installed");
            continue;
        };
        assert!(run.status.success() && run.stderr.is_empty(), "{run:?}");
    }
}

#[test]
fn what_there_is_no_page_or_script_of_is_refused_by_its_name() {
    for args in [["man", "fly"], ["completions", "tcsh"]] {
        let run = threadcast(&args).output().expect("the program runs");
        assert_eq!(run.status.code(), Some(2), "{run:?}");
        assert!(
            String::from_utf8_lossy(&run.stderr).contains(args[1]),
            "{run:?}"
        );
    }
}

#[test]
fn the_units_are_what_systemd_takes() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut paths = Vec::new();
    for name in ["threadcast.service", "threadcast.socket"] {
        let unit = fs::read_to_string(format!("examples/systemd/{name}")).expect("a unit");
        // systemd looks whether the program is there.
        let unit = unit.replace(
            "/usr/local/bin/threadcast",
            env!("CARGO_BIN_EXE_threadcast"),
        );
        let unit = if systemd_version() < Some(253) {
            // What the unit itself says to write there.
            unit.replace(
                "Type=notify-reload",
                "Type=notify\nExecReload=kill -HUP $MAINPID",
            )
        } else {
            unit
        };
        let path = directory.path().join(name);
        fs::write(&path, unit).expect("a file");
        paths.push(path);
    }
    let run = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(paths)
        .output();
    match run {
        Ok(run) => {
            let said = String::from_utf8_lossy(&run.stderr);
            // Other units of the machine may be broken.
            let ours: Vec<_> = said
                .lines()
                .filter(|line| line.contains("threadcast"))
                .collect();
            assert!(run.status.success() && ours.is_empty(), "{said}");
        }
        Err(_) => skipped("systemd is not installed"),
    }
}

/// `systemd 252 (252.39-1)` is 252.
fn systemd_version() -> Option<u32> {
    let run = Command::new("systemd-analyze").arg("--version").output();
    let said = String::from_utf8(run.ok()?.stdout).ok()?;
    said.split_whitespace().nth(1)?.parse().ok()
}

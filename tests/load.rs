//! `threadcast bench`: what it reports has been checked, however the load is spread.
//!
//! The story: with a thread for each of eight publishers a server that does nothing answered 70,000 POSTs a second,
//! with one thread for all of them 140,000. But one thread for many must not mix up whose answer is whose, or
//! the checks would mean nothing.

mod common;

use std::thread;
use std::time::Duration;

use common::cli::{Client, threadcast};
use rustix::process::Signal;
use serde_json::Value;

#[test]
fn every_publisher_gets_its_own_answers_however_many_threads_serve_them() {
    for load in [
        "--publishers 8",
        "--publishers 8 --publisher-threads 3",
        "--publishers 8 --publisher-threads 8",
        "--publishers 3 --publisher-threads 8",
        "--publishers 8 --channels 3 --rate 400",
        "--publishers 8 --content-bytes 70000 --max-behind 4",
        "--feed --publishers 8",
        "--feed --equal --publishers 8",
    ] {
        let report = report(&format!(
            "--subscribers 6 --seconds 0.5 --warmup-seconds 0.5 {load}"
        ));
        assert_eq!(report["fault"], Value::Null, "{load}");
        let answered = report["messages"].as_u64().or(report["puts"].as_u64());
        assert!(answered >= Some(8), "{load}: {report}");
    }
}

#[test]
fn the_server_to_load_may_be_another_program() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = directory.path().join("no-such-server");
    let output = threadcast(&["bench", "--seconds", "0", "--server"])
        .arg(&missing)
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&missing.display().to_string()), "{said}");

    let same = env!("CARGO_BIN_EXE_threadcast");
    let report = report(&format!("--subscribers 2 --seconds 0.2 --server {same}"));
    assert_eq!(report["fault"], Value::Null);
}

/// ^Z and `fg`: whoever waits for an answer then is interrupted.
#[test]
fn a_load_that_is_stopped_and_goes_on_loses_no_answer() {
    for load in [
        "--publishers 1",
        "--publishers 8",
        "--via ws --publishers 2",
    ] {
        let mut command = threadcast(&["bench", "--json", "--subscribers", "6"]);
        command.args(["--seconds", "2"]).args(load.split(' '));
        let (client, stdout) = Client::spawn(command);
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(40));
            client.signal(Signal::STOP);
            thread::sleep(Duration::from_millis(40));
            client.signal(Signal::CONT);
        }
        let (code, _, said) = client.end();
        assert_eq!(code, Some(0), "{load}: {said:?}");
        let report: Value = serde_json::from_reader(stdout).expect("a report");
        assert_eq!(report["fault"], Value::Null, "{load}");
    }
}

fn report(flags: &str) -> Value {
    let output = threadcast(&["bench", "--json"])
        .args(flags.split(' '))
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no report: {said}"))
}

//! Watched sources: looked at only for somebody, not believed when they fail, and never left
//! running.

mod common;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use common::{DEADLINE, Http, Program, TestServer, Ws, eventually};
use rusqlite::Connection;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use threadcast::config::Database;

const HOUR: Duration = Duration::from_secs(3600);

/// Time between two looks where a test needs many.
const OFTEN: Duration = Duration::from_millis(20);

/// Looks after which what has not happened is not going to.
const MANY: u64 = 10;

/// Times of modification, in seconds since 1970: fixed, so that two files can have the same.
const IN_2019: u64 = 1_550_000_000;
const IN_2020: u64 = 1_590_000_000;
/// A file with a time to come counts as just written: every look reads it, and `reads` counts the looks.
const IN_2100: u64 = 4_110_000_000;

/// A group of processes that ignore what they may ignore; its number goes to the file `GROUPS`.
const STUBBORN: &str =
    "trap '' TERM HUP INT; sleep 300 & sleep 300 & sleep 300 & echo $$ >>'GROUPS'; ";

#[test]
fn a_source_sleeps_until_its_own_feed_has_a_subscriber_and_again_after_the_last_one_left() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (file, runs) = (dir.path().join("file.json"), dir.path().join("runs"));
    put(&file, "1", IN_2100);
    let sources = [
        format!("read=file:{}", file.display()),
        format!("run=exec:echo run >>'{}'; echo 1", runs.display()),
        Clock::source(&dir),
    ];
    let server = watching(OFTEN, &sources);
    let mut clock = Clock::of(&server);
    clock.pass(MANY);
    for feed in ["read", "run"] {
        assert_eq!(reads(server.address, feed), 0, "{feed}");
    }
    assert!(!runs.exists(), "the command ran for nobody");

    for feed in ["read", "run"] {
        let mut subscriber = follow(server.address, feed);
        begin(&mut subscriber, &frame(feed, json!(1), 1));
        eventually("it goes on looking", || reads(server.address, feed) > 2);
        leave(server.address, feed, subscriber);
        // A look may have begun before the subscriber left.
        let most = reads(server.address, feed) + 1;
        clock.pass(MANY);
        let reads = reads(server.address, feed);
        assert!(reads <= most, "{feed}: {reads} looks, not {most}");
        if feed == "run" {
            let runs = lines(&runs);
            assert!(runs <= most, "{runs} runs, not {most}");
        }
    }
}

#[test]
fn the_first_subscriber_makes_it_look_at_once_whenever_it_comes_and_a_second_one_does_not() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (file, runs) = (dir.path().join("file.json"), dir.path().join("runs"));
    let path = file.display();
    let sources = [
        format!("read=file:{path}"),
        format!("run=exec:echo run >>'{}'; cat '{path}'", runs.display()),
    ];
    let server = watching(HOUR, &sources);
    let elsewhere = watching(OFTEN, &[Clock::source(&dir)]);
    let mut clock = Clock::of(&elsewhere);
    for feed in ["read", "run"] {
        for round in 1..4 {
            put(&file, round.to_string(), IN_2100);
            let mut first = follow(server.address, feed);
            begin(&mut first, &frame(feed, json!(round), round));
            eventually("the look is counted", || {
                reads(server.address, feed) == round
            });
            let mut second = follow(server.address, feed);
            assert_eq!(second.next(), frame(feed, json!(round), round));
            clock.pass(MANY);
            assert_eq!(reads(server.address, feed), round, "{feed}");
            drop(second);
            leave(server.address, feed, first);
        }
    }
    assert_eq!(lines(&runs), 3);
}

#[test]
fn a_change_of_the_file_reaches_every_subscriber_while_it_listens() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("state.json");
    put(&file, "0", IN_2020);
    let server = watching(OFTEN, &[format!("lab=file:{}", file.display())]);
    let mut subscribers = [(); 3].map(|()| follow(server.address, "lab"));
    for subscriber in &mut subscribers {
        begin(subscriber, &frame("lab", json!(0), 1));
    }
    for n in 1..5 {
        // A look in the middle of it finds nothing, which tells nobody.
        fs::write(&file, n.to_string()).expect("a file");
        for subscriber in &mut subscribers {
            assert_eq!(subscriber.next(), frame("lab", json!(n), n + 1));
        }
    }
}

/// The file changes while nobody listens: what it is like afterwards is all there is to see.
#[test]
fn whatever_has_changed_about_a_file_it_is_read_again() {
    type Change = fn(&Path);
    const CHANGES: [(&str, u64, Change); 6] = [
        ("longer", IN_2020, |file| write(file, " 2 ", IN_2020)),
        ("later", IN_2019, |file| write(file, "2", IN_2020)),
        ("earlier", IN_2020, |file| write(file, "2", IN_2019)),
        ("another", IN_2020, |file| put(file, "2", IN_2020)),
        ("link", IN_2020, |file| {
            let target = file.with_extension("target");
            write(&target, "2", IN_2020);
            fs::remove_file(file).expect("a file");
            symlink(target, file).expect("a link");
        }),
        // Written again within the same time stamp.
        ("unsettled", IN_2100, |file| write(file, "2", IN_2100)),
    ];
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = |feed: &str| dir.path().join(feed);
    let sources = CHANGES.map(|(feed, ..)| format!("{feed}=file:{}", path(feed).display()));
    let server = watching(HOUR, &sources);
    for (feed, modified, change) in CHANGES {
        put(&path(feed), "1", modified);
        let mut subscriber = follow(server.address, feed);
        begin(&mut subscriber, &frame(feed, json!(1), 1));
        leave(server.address, feed, subscriber);

        change(&path(feed));
        let mut subscriber = follow(server.address, feed);
        begin(&mut subscriber, &frame(feed, json!(2), 2));
    }
}

#[test]
fn a_settled_file_is_read_once_good_or_bad_and_its_error_stays_shown() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("state.json");
    put(&file, "1", IN_2020);
    let source = format!("lab=file:{}", file.display());
    let server = watching(OFTEN, &[source, Clock::source(&dir)]);
    let mut clock = Clock::of(&server);
    let mut subscriber = follow(server.address, "lab");
    begin(&mut subscriber, &frame("lab", json!(1), 1));
    clock.pass(MANY);
    assert_eq!(reads(server.address, "lab"), 1);
    assert_eq!(watch(server.address, "lab")["error"], Value::Null);

    put(&file, "[1,", IN_2020);
    eventually("it is read", || reads(server.address, "lab") == 2);
    let failed = watch(server.address, "lab");
    assert!(failed["error"].is_string(), "{failed}");
    clock.pass(MANY);
    assert_eq!(watch(server.address, "lab"), failed);
}

#[test]
fn a_file_that_was_away_is_good_again_when_the_very_same_is_back() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (file, away) = (dir.path().join("here"), dir.path().join("away"));
    put(&file, "1", IN_2020);
    let server = watching(OFTEN, &[format!("lab=file:{}", file.display())]);
    let mut subscriber = follow(server.address, "lab");
    begin(&mut subscriber, &frame("lab", json!(1), 1));
    fs::rename(&file, &away).expect("a file");
    error(server.address, "lab", "No such file");
    fs::rename(&away, &file).expect("a file");
    recovery(server.address, "lab");
    put(&file, "2", IN_2020);
    assert_eq!(subscriber.next(), frame("lab", json!(2), 2));
}

#[test]
fn a_file_that_fails_keeps_the_last_state_is_shown_and_logged_once_and_recovers() {
    type Break = fn(&Path);
    const FAILURES: [(&str, &str, Break); 11] = [
        ("missing", "No such file", clear),
        ("directory", "not a file", |file| {
            clear(file);
            fs::create_dir(file).expect("a directory");
        }),
        ("pipe", "not a file", |file| {
            clear(file);
            let mode = Mode::from_raw_mode(0o600);
            mknodat(CWD, file, FileType::Fifo, mode, 0).expect("a pipe");
        }),
        ("device", "not a file", |file| {
            clear(file);
            symlink("/dev/zero", file).expect("a link");
        }),
        ("loop", "symbolic links", |file| {
            clear(file);
            symlink(file, file).expect("a link");
        }),
        ("empty", "not JSON", |file| put(file, "", IN_2100)),
        ("half", "not JSON", |file| put(file, r#"{"n":2"#, IN_2100)),
        ("two", "not JSON", |file| put(file, "1 2", IN_2100)),
        ("latin", "not JSON", |file| put(file, b"\"\xe9\"", IN_2100)),
        ("nested", "not JSON", |file| {
            put(file, "[".repeat(200) + &"]".repeat(200), IN_2100);
        }),
        ("large", "1024 bytes", |file| {
            put(file, json!("x".repeat(1023)).to_string(), IN_2100);
        }),
    ];
    let stories = FAILURES.map(|(feed, error, break_it)| Story {
        feed,
        error,
        break_it,
        good: |n| json!({ "n": n }).to_string(),
    });
    assert_all_recover(&stories, "file:PATH");
}

#[test]
fn a_command_that_fails_keeps_the_last_state_is_shown_and_logged_once_and_recovers() {
    const FAILURES: [(&str, &str, &str); 11] = [
        ("missing", "exit status: 127)", "no-such-command-here"),
        (
            "complaining",
            "exit status: 3): it broke",
            "echo first >&2; echo 'it broke' >&2; exit 3",
        ),
        ("silent", "exit status: 1)", "exit 1"),
        (
            "changing-its-mind",
            "exit status: 1)",
            "echo '{\"n\":9}'; exit 1",
        ),
        ("killed", "signal: 9", "kill -KILL $$"),
        ("endless", "1024 bytes", "yes"),
        ("large", "1024 bytes", "printf '%01025d' 1"),
        ("empty", "not JSON", ":"),
        ("half", "not JSON", "printf '{\"n\":2'"),
        (
            "late",
            "did not end within 500ms",
            "trap '' TERM HUP; (trap '' TERM HUP; sleep 300) & wait",
        ),
        (
            "late-and-deaf",
            "did not end within 500ms",
            "exec >&- 2>&- sleep 300",
        ),
    ];
    let stories = FAILURES.map(|(feed, error, script)| Story {
        feed,
        error,
        break_it: move |path: &Path| put(path, script, IN_2020),
        good: |n| format!("printf '%s' '{{\"n\":{n}}}'"),
    });
    assert_all_recover(&stories, "exec:. 'PATH'");
}

#[test]
fn each_distinct_error_is_logged_once_however_often_they_take_turns() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("state.json");
    let source = format!("lab=file:{}", file.display());
    let program = start(&dir, &["--watch", &source, "--watch-interval", "20ms"], "");
    let _subscriber = follow(program.address, "lab");
    for _ in 0..3 {
        clear(&file);
        error(program.address, "lab", "No such file");
        fs::create_dir(&file).expect("a directory");
        error(program.address, "lab", "not a file");
    }
    for error in ["No such file", "not a file"] {
        assert_eq!(logged(&dir, &["lab", error]), 1, "{}", log(&dir));
    }
}

#[test]
fn a_source_that_was_never_there_leaves_the_feed_as_it_was_until_it_comes() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("state.json");
    let path = file.display();
    let sources = [
        format!("read=file:{path}"),
        format!("run=exec:cat '{path}'"),
    ];
    let server = watching(OFTEN, &sources);
    for feed in ["read", "run"] {
        let mut subscriber = follow(server.address, feed);
        assert_eq!(subscriber.next(), frame(feed, Value::Null, 0));
        error(server.address, feed, "No such file");
        put(&file, "[]", IN_2020);
        assert_eq!(subscriber.next(), frame(feed, json!([]), 1));
        recovery(server.address, feed);
        clear(&file);
    }
}

#[test]
fn an_equal_state_in_another_notation_tells_nobody() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("state.json");
    let path = file.display();
    let sources = [
        format!("read=file:{path}"),
        format!("run=exec:cat '{path}'"),
    ];
    let server = watching(OFTEN, &sources);
    for feed in ["read", "run"] {
        put(&file, r#"{"a":1,"b":[true,"é"]}"#, IN_2100);
        let mut subscriber = follow(server.address, feed);
        begin(
            &mut subscriber,
            &frame(feed, json!({"a": 1, "b": [true, "é"]}), 1),
        );
        put(
            &file,
            "{ \"b\": [true, \"\\u00e9\"],\n\"a\": 1.0 }\n",
            IN_2100,
        );
        look_often(server.address, feed);
        put(&file, "2", IN_2100);
        assert_eq!(subscriber.next(), frame(feed, json!(2), 2));
    }
}

#[test]
fn after_a_restart_the_same_source_is_no_change_and_another_one_is_the_next() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("state.json");
    put(&file, "1", IN_2020);
    let restart = || {
        TestServer::start_with(|config| {
            config.database = Database::File(dir.path().join("kept.db"));
            config.watch_interval = OFTEN;
            config.watches = vec![format!("lab=file:{}", file.display()).parse().expect("it")];
        })
    };
    let mut server = restart();
    begin(
        &mut follow(server.address, "lab"),
        &frame("lab", json!(1), 1),
    );
    server.shutdown();

    let server = restart();
    let mut subscriber = follow(server.address, "lab");
    assert_eq!(subscriber.next(), frame("lab", json!(1), 1));
    eventually("it is read", || reads(server.address, "lab") == 1);
    put(&file, "2", IN_2020);
    assert_eq!(subscriber.next(), frame("lab", json!(2), 2));
}

#[test]
fn what_somebody_puts_on_a_watched_feed_stays_until_its_source_changes() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("state.json");
    put(&file, "1", IN_2020);
    let source = format!("lab=file:{}", file.display());
    let server = watching(OFTEN, &[source, Clock::source(&dir)]);
    let mut clock = Clock::of(&server);
    let mut subscriber = follow(server.address, "lab");
    begin(&mut subscriber, &frame("lab", json!(1), 1));
    let answer = put_state(server.address, "lab", &json!("by hand"));
    assert_eq!(
        answer,
        json!({"success": true, "changed": true, "rev": 2, "subscribers": 1})
    );
    assert_eq!(subscriber.next(), frame("lab", json!("by hand"), 2));
    clock.pass(MANY);
    put(&file, "3", IN_2020);
    assert_eq!(subscriber.next(), frame("lab", json!(3), 3));
}

#[test]
fn a_watched_history_of_workflows_replaces_the_derived_one() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("history.json");
    put(&file, r#"["told"]"#, IN_2020);
    let server = watching(
        OFTEN,
        &[format!("workflow-history=file:{}", file.display())],
    );
    // Nothing is derived, not even before the first look.
    put_state(server.address, "workflows", &json!([{"id": "a"}]));
    let mut subscriber = follow(server.address, "workflow-history");
    begin(
        &mut subscriber,
        &frame("workflow_history", json!(["told"]), 1),
    );
    put_state(server.address, "workflows", &json!([{"id": "b"}]));
    put(&file, r#"["told again"]"#, IN_2020);
    let told_again = frame("workflow_history", json!(["told again"]), 2);
    assert_eq!(subscriber.next(), told_again);
}

#[test]
fn watched_workflows_make_their_history() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("workflows.json");
    let source = format!("workflows=file:{}", file.display());
    put(&file, "[]", IN_2020);
    let server = watching(OFTEN, &[source]);
    let mut workflows = follow(server.address, "workflows");
    let mut history = follow(server.address, "workflow-history");
    assert_eq!(history.next()["data"]["total_count"], 0);
    assert_eq!(workflows.next(), frame("workflows", json!([]), 0));
    for (rev, status, change) in [
        (1, Some("running"), "appeared"),
        (2, Some("done"), "changed"),
        (3, None, "went"),
    ] {
        let state: Vec<_> = status
            .iter()
            .map(|status| json!({"id": "a", "status": status}))
            .collect();
        put(&file, json!(state).to_string(), IN_2020);
        assert_eq!(workflows.next(), frame("workflows", json!(state), rev));
        let told = history.next();
        assert_eq!(told["data"]["total_count"], rev, "{told}");
        let newest = &told["data"]["workflows"][0];
        assert_eq!(newest["id"], "a", "{told}");
        assert_eq!(newest["history"]["change"], change, "{told}");
    }
}

/// The store gives up after a while; the watcher must not take what it could not store for known.
#[test]
fn a_state_that_could_not_be_stored_is_published_when_the_store_works_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("state.json");
    put(&file, "1", IN_2020);
    let server = watching(OFTEN, &[format!("lab=file:{}", file.display())]);
    let lock = Connection::open(server.database()).expect("a database");
    lock.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let mut subscriber = follow(server.address, "lab");
    assert_eq!(subscriber.next(), frame("lab", Value::Null, 0));
    error(server.address, "lab", "locked");
    assert_eq!(state(server.address, "lab"), frame("lab", Value::Null, 0));

    lock.execute_batch("ROLLBACK").expect("an unlock");
    assert_eq!(subscriber.next(), frame("lab", json!(1), 1));
    recovery(server.address, "lab");
}

#[test]
fn a_command_that_hangs_costs_the_other_feeds_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (groups, file) = (dir.path().join("groups"), dir.path().join("state.json"));
    put(&file, "0", IN_2020);
    let sources = [
        format!("hangs=exec:{}wait", stubborn(&groups)),
        format!("lab=file:{}", file.display()),
        Clock::source(&dir),
    ];
    let server = TestServer::start_with(|config| {
        config.watches = sources.map(|source| source.parse().expect(&source)).into();
        config.watch_interval = OFTEN;
        config.watch_timeout = HOUR;
    });
    let mut hanging = follow(server.address, "hangs");
    assert_eq!(hanging.next(), frame("hangs", Value::Null, 0));
    let group = first_group(&groups);
    Clock::of(&server).pass(MANY);
    let mut subscriber = follow(server.address, "lab");
    begin(&mut subscriber, &frame("lab", json!(0), 1));
    put(&file, "1", IN_2020);
    assert_eq!(subscriber.next(), frame("lab", json!(1), 2));
    put_state(server.address, "hangs", &json!("by hand"));
    assert_eq!(hanging.next(), frame("hangs", json!("by hand"), 1));
    assert!(members(&group) > 1, "it hangs no more");
    assert_eq!(lines(&groups), 1, "it was run again before its end");
}

#[test]
fn however_a_run_ends_no_process_of_its_group_is_left() {
    // What the command does after it has started its children, and what becomes of it.
    const ENDS: [(&str, &str, Option<&str>); 4] = [
        ("deadline", "wait", Some("did not end within 500ms")),
        ("failure", "exit 1", Some("exit status: 1")),
        ("crash", "kill -KILL $$", Some("signal: 9")),
        ("success", "echo 1", None),
    ];
    let dir = tempfile::tempdir().expect("a temporary directory");
    let groups = |feed: &str| dir.path().join(feed);
    let server = TestServer::start_with(|config| {
        let source = |(feed, end, _)| format!("{feed}=exec:{}{end}", stubborn(&groups(feed)));
        let sources = ENDS.map(source);
        config.watches = sources.map(|source| source.parse().expect(&source)).into();
        config.watch_interval = OFTEN;
        config.watch_timeout = Duration::from_millis(500);
    });
    for (feed, _, failure) in ENDS {
        let mut subscriber = follow(server.address, feed);
        match failure {
            Some(failure) => drop(error(server.address, feed, failure)),
            None => begin(&mut subscriber, &frame(feed, json!(1), 1)),
        }
        let group = first_group(&groups(feed));
        eventually("the group is gone", || members(&group) == 0);
        leave(server.address, feed, subscriber);
    }
}

#[test]
fn a_shutdown_does_not_wait_for_a_command_and_leaves_no_process_of_it() {
    for signal in [Signal::TERM, Signal::INT] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let groups = dir.path().join("groups");
        let source = format!("lab=exec:{}wait", stubborn(&groups));
        let args = ["--watch", &source, "--watch-timeout", "1h"];
        let mut program = start(&dir, &args, "");
        let mut subscriber = follow(program.address, "lab");
        let group = first_group(&groups);
        assert!(members(&group) > 1, "it has no children");
        program.signal(signal);
        assert_eq!(subscriber.close_code(), Some(1001));
        drop(subscriber);
        assert_eq!(program.wait().code(), Some(0));
        eventually("the group is gone", || members(&group) == 0);
    }
}

#[test]
fn a_shutdown_during_a_command_is_no_failure_of_its_source() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let groups = dir.path().join("groups");
    let source = format!("lab=exec:{}wait", stubborn(&groups));
    let args = ["--watch", &source, "--watch-timeout", "1h"];
    // Of a shorter one a busy machine may use up the watcher's part, which would be told.
    let args = [&args[..], &["--drain", "60s"]].concat();
    let mut program = start(&dir, &args, "");
    let subscriber = follow(program.address, "lab");
    first_group(&groups);
    program.signal(Signal::TERM);
    drop(subscriber);
    assert_eq!(program.wait().code(), Some(0));
    assert_eq!(logged(&dir, &["WARN"]), 0, "{}", log(&dir));
}

#[test]
fn the_last_line_of_a_long_complaint_is_the_one_that_is_shown() {
    let source = "lab=exec:seq 1 5000 >&2; echo 'it broke' >&2; exit 3".to_owned();
    let server = watching(OFTEN, &[source]);
    let _subscriber = follow(server.address, "lab");
    let shown = error(server.address, "lab", "exit status: 3");
    assert!(shown.ends_with(": it broke"), "{shown}");
}

#[test]
fn the_longest_times_that_the_flags_take_work() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let longest = "36500d";
    let flags = [
        "--watch",
        "lab=exec:echo 1",
        "--watch-timeout",
        longest,
        "--watch-interval",
        longest,
    ];
    let program = start(&dir, &flags, "");
    begin(
        &mut follow(program.address, "lab"),
        &frame("lab", json!(1), 1),
    );
}

#[test]
fn a_line_break_at_the_end_of_the_variable_is_no_source() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_threadcast"));
    command
        .args(["--listen", "127.0.0.1:0", "--db", ":memory:"])
        .env("THREADCAST_WATCH", "lab=exec:echo 1\n");
    command.stderr(Stdio::inherit());
    let program = Program::start_command(command);
    begin(
        &mut follow(program.address, "lab"),
        &frame("lab", json!(1), 1),
    );
}

#[test]
fn an_empty_variable_is_no_source() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_threadcast"));
    command
        .args(["--listen", "127.0.0.1:0", "--db", ":memory:"])
        .env("THREADCAST_WATCH", "");
    Program::start_command(command);
}

#[test]
fn a_command_of_two_lines_is_one_command() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let program = start(&dir, &["--watch", "lab=exec:X=1\necho $X"], "");
    begin(
        &mut follow(program.address, "lab"),
        &frame("lab", json!(1), 1),
    );
}

#[test]
fn a_source_that_comes_and_goes_is_not_logged_every_time() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("state.json");
    let source = format!("lab=file:{}", file.display());
    let program = start(&dir, &["--watch", &source, "--watch-interval", "20ms"], "");
    let _subscriber = follow(program.address, "lab");
    for _ in 0..5 {
        clear(&file);
        error(program.address, "lab", "No such file");
        put(&file, "1", IN_2020);
        recovery(program.address, "lab");
    }
    assert!(logged(&dir, &["works again"]) <= 1, "{}", log(&dir));
}

/// Its status was taken before its group was killed, so what it had started stayed, at every look.
#[test]
fn a_command_that_dies_of_its_closed_output_leaves_no_process_of_its_group() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for round in 0..20 {
        let groups = dir.path().join(round.to_string());
        let server = watching(HOUR, &[format!("lab=exec:{}exec yes", stubborn(&groups))]);
        let _subscriber = follow(server.address, "lab");
        error(server.address, "lab", "bytes");
        let group = first_group(&groups);
        eventually("the group is gone", || members(&group) == 0);
    }
}

#[test]
fn sources_come_from_several_flags_or_one_a_line_from_the_environment() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    // All that follows the first colon is the path.
    let file = dir.path().join("a=b:c d.json");
    put(&file, r#""file""#, IN_2020);
    let sources = [
        format!("a.file=file:{}", file.display()),
        r#"an_exec=exec:X='a=b:c, d'; printf '"%s"' "$X""#.to_owned(),
        "0-last=exec:echo '[\"last\"]'".to_owned(),
    ];
    let flags = sources.each_ref().map(|source| ["--watch", source]);
    for (args, variable) in [
        (flags.concat(), String::new()),
        (vec![], sources.join("\n")),
    ] {
        let program = start(&dir, &args, &variable);
        for (feed, state) in [
            ("a.file", json!("file")),
            ("an_exec", json!("a=b:c, d")),
            ("0-last", json!(["last"])),
        ] {
            begin(&mut follow(program.address, feed), &frame(feed, state, 1));
        }
        let watch = |feed| watch(program.address, feed)["source"].take();
        assert_eq!(watch("a.file"), "file");
        assert_eq!(watch("an_exec"), "exec");
        fs::remove_file(dir.path().join("watched.db")).expect("a database");
    }
}

#[test]
fn what_cannot_be_watched_is_refused_in_a_sentence_that_names_the_flag() {
    let too_long = format!("--watch {}=file:x", "a".repeat(65));
    for (args, culprit) in [
        ("--watch", "--watch"),
        ("--watch=", "no `=`"),
        ("--watch lab", "no `=` in \"lab\""),
        ("--watch lab:file", "no `=` in \"lab:file\""),
        ("--watch =file:x", "empty"),
        ("--watch Lab=file:x", "'L'"),
        ("--watch a/b=file:x", "'/'"),
        (too_long.as_str(), "65"),
        ("--watch lab=", "neither a file nor a command"),
        ("--watch lab=x", "neither a file nor a command"),
        ("--watch lab=http://x/", "neither a file nor a command"),
        ("--watch lab=FILE:x", "neither a file nor a command"),
        ("--watch lab=file:", "nothing comes behind"),
        ("--watch lab=exec:", "nothing comes behind"),
        ("--watch lab=file:x --watch lab=exec:x", "lab twice"),
        (
            "--watch a=file:x --watch b=file:x --watch a=file:x",
            "a twice",
        ),
        ("--watch-interval 0", "--watch-interval"),
        ("--watch-interval 0ms", "--watch-interval"),
        ("--watch-interval often", "--watch-interval"),
        ("--watch-timeout never", "--watch-timeout"),
        ("--watch-timeout 0", "--watch-timeout"),
    ] {
        let mut command = threadcast();
        command.args(["--listen", "127.0.0.1:0", "--db", ":memory:"]);
        command.args(args.split(' '));
        assert_refused(command, &["--watch", culprit]);
    }
    for (name, value, culprits) in [
        ("WATCH", "a=file:x\nb", ["--watch", "no `=` in \"b\""]),
        ("WATCH", "a=file:x\na=file:y", ["--watch", "a twice"]),
        ("WATCH_INTERVAL", "0", ["--watch-interval", "0"]),
        ("WATCH_TIMEOUT", "x", ["--watch-timeout", "duration"]),
    ] {
        let mut command = threadcast();
        command.args(["--listen", "127.0.0.1:0", "--db", ":memory:"]);
        command.env(format!("THREADCAST_{name}"), value);
        assert_refused(command, &culprits);
    }
}

#[test]
fn help_names_what_can_be_watched_and_how() {
    let mut command = threadcast();
    let run = run(command.arg("--help"));
    let help = String::from_utf8(run.stdout).expect("text");
    for word in [
        "--watch <FEED=SOURCE>",
        "FEED=file:PATH",
        "FEED=exec:COMMAND",
        "THREADCAST_WATCH=",
        "--watch-interval",
        "THREADCAST_WATCH_INTERVAL=",
        "[default: 2s]",
        "--watch-timeout",
        "THREADCAST_WATCH_TIMEOUT=",
    ] {
        assert!(help.contains(word), "{word} is missing:\n{help}");
    }
}

/// A source that is good, fails, is as good as before, and then better.
struct Story<B> {
    feed: &'static str,
    /// What is shown of the failure.
    error: &'static str,
    break_it: B,
    /// What gives `{"n":n}`.
    good: fn(u64) -> String,
}

/// Runs the program with a source of this form for every story, and sees each of them through.
fn assert_all_recover<B: Fn(&Path)>(stories: &[Story<B>], source: &str) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = |feed: &str| dir.path().join(feed);
    let sources: Vec<_> = stories
        .iter()
        .map(|story| (story.feed, path(story.feed).display().to_string()))
        .map(|(feed, path)| format!("{feed}={}", source.replace("PATH", &path)))
        .collect();
    let flags = "--watch-interval 20ms --watch-timeout 500ms --max-body-bytes 1KiB";
    let mut args: Vec<_> = flags.split(' ').collect();
    args.extend(sources.iter().flat_map(|source| ["--watch", source]));
    let program = start(&dir, &args, "");
    let address = program.address;
    for story in stories {
        let feed = story.feed;
        let put_good = |n| {
            clear(&path(feed));
            put(&path(feed), (story.good)(n), IN_2100);
        };
        put_good(1);
        let mut subscriber = follow(address, feed);
        let last = frame(feed, json!({"n": 1}), 1);
        begin(&mut subscriber, &last);

        (story.break_it)(&path(feed));
        let shown = error(address, feed, story.error);
        look_often(address, feed);
        assert_eq!(state(address, feed), last);

        put_good(1);
        recovery(address, feed);
        put_good(2);
        // There was nothing to hear between the two good states.
        assert_eq!(subscriber.next(), frame(feed, json!({"n": 2}), 2));
        recovery(address, feed);
        leave(address, feed, subscriber);
        let about = format!(" {feed} ");
        let log = log(&dir);
        assert_eq!(logged(&dir, &[&about, &shown]), 1, "{feed}: {log}");
    }
}

/// A server that looks at these sources this often.
fn watching(interval: Duration, sources: &[String]) -> TestServer {
    TestServer::start_with(|config| {
        let watches = sources.iter().map(|source| source.parse().expect(source));
        config.watches = watches.collect();
        config.watch_interval = interval;
    })
}

/// A feed whose every look is a change: who sees many of them knows that time has passed.
struct Clock {
    address: SocketAddr,
    subscriber: Ws,
}

impl Clock {
    fn source(dir: &TempDir) -> String {
        let ticks = dir.path().join("ticks").display().to_string();
        format!("clock=exec:echo tick >>'{ticks}'; wc -l <'{ticks}'")
    }

    fn of(server: &TestServer) -> Self {
        Self {
            address: server.address,
            subscriber: follow(server.address, "clock"),
        }
    }

    /// Waits for so many looks from now on, whatever the subscriber has not read yet.
    fn pass(&mut self, looks: u64) {
        let rev = |state: Value| state["rev"].as_u64().expect("a revision");
        let end = rev(state(self.address, "clock")) + looks;
        while rev(self.subscriber.next()) < end {}
    }
}

/// The program with a database and a log in this directory, and this `THREADCAST_WATCH` unless it is empty.
fn start(dir: &TempDir, args: &[&str], variable: &str) -> Program {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "exec \"$@\" 2>>\"$0\""])
        .arg(dir.path().join("log"))
        .arg(env!("CARGO_BIN_EXE_threadcast"))
        .args(["--listen", "127.0.0.1:0", "--db"])
        .arg(dir.path().join("watched.db"))
        .args(args);
    forget_environment(&mut command);
    if !variable.is_empty() {
        command.env("THREADCAST_WATCH", variable);
    }
    Program::start_command(command)
}

fn threadcast() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_threadcast"));
    forget_environment(&mut command);
    command
}

fn forget_environment(command: &mut Command) {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("THREADCAST_")) {
        command.env_remove(name);
    }
}

fn log(dir: &TempDir) -> String {
    fs::read_to_string(dir.path().join("log")).expect("the log")
}

/// How many lines of the log have all of these parts.
fn logged(dir: &TempDir, parts: &[&str]) -> usize {
    let log = log(dir);
    let has_all = |line: &&str| parts.iter().all(|part| line.contains(part));
    log.lines().filter(has_all).count()
}

/// Runs a command that must end by itself.
fn run(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let start = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if start.elapsed() > DEADLINE {
            child.kill().expect("a child");
            panic!("it did not end: {command:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().expect("its output")
}

/// A program that can't start says so in a sentence with the culprits.
fn assert_refused(mut command: Command, culprits: &[&str]) {
    let run = run(&mut command);
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(
        matches!(run.status.code(), Some(1 | 2)),
        "{command:?}: {said}"
    );
    let sentence = said.lines().next().unwrap_or_default();
    for culprit in culprits {
        assert!(
            sentence.contains(culprit),
            "{command:?}: no {culprit}: {said}"
        );
    }
    assert_eq!(run.stdout, b"", "{command:?}");
}

fn follow(address: SocketAddr, feed: &str) -> Ws {
    Ws::open(address, &format!("/ws/{feed}"))
}

/// Ends a feed's only subscriber; returns when the server knows.
fn leave(address: SocketAddr, feed: &str, subscriber: Ws) {
    drop(subscriber);
    eventually("the server has seen it leave", || {
        status(address, feed)["subscribers"] == 0
    });
}

fn frame(feed: &str, data: Value, rev: u64) -> Value {
    let name = feed.replace('-', "_");
    json!({"type": format!("{name}_update"), "data": data, "rev": rev})
}

/// Reads a new subscriber's frames up to this one. The look that it causes may be done when it
/// is given its first frame; otherwise it begins with the state before.
fn begin(subscriber: &mut Ws, expected: &Value) {
    let rev = |frame: &Value| frame["rev"].as_u64().expect("a revision");
    let mut found = subscriber.next();
    if rev(&found) + 1 == rev(expected) {
        found = subscriber.next();
    }
    assert_eq!(found, *expected);
}

fn state(address: SocketAddr, feed: &str) -> Value {
    Http::connect(address)
        .get(&format!("/api/state/{feed}"))
        .json()
}

fn put_state(address: SocketAddr, feed: &str, state: &Value) -> Value {
    let target = format!("/api/state/{feed}");
    let body = state.to_string();
    let json = [("Content-Type", "application/json")];
    let response = Http::connect(address).request("PUT", &target, &json, body.as_bytes());
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

/// What `GET /api/state` says of a feed.
fn status(address: SocketAddr, feed: &str) -> Value {
    let mut all = Http::connect(address).get("/api/state").json();
    let feeds = all["feeds"].as_array_mut().expect("a list").iter_mut();
    let mut found: Vec<_> = feeds.filter(|status| status["feed"] == feed).collect();
    assert_eq!(found.len(), 1, "{feed} is there once");
    found[0].take()
}

fn watch(address: SocketAddr, feed: &str) -> Value {
    status(address, feed)["watch"].take()
}

fn reads(address: SocketAddr, feed: &str) -> u64 {
    let watch = watch(address, feed);
    watch["reads"].as_u64().expect("a watched feed")
}

/// Waits for a few looks that begin from now on.
fn look_often(address: SocketAddr, feed: &str) {
    let before = reads(address, feed);
    eventually("it is looked at", || reads(address, feed) >= before + 3);
}

/// Waits until an error with this part is shown, and returns all of it.
fn error(address: SocketAddr, feed: &str, part: &str) -> String {
    let mut shown = String::new();
    eventually(&format!("{feed} shows {part}"), || {
        let watch = watch(address, feed);
        shown = watch["error"].as_str().unwrap_or_default().to_owned();
        shown.contains(part)
    });
    shown
}

/// Waits until no error is shown any more.
fn recovery(address: SocketAddr, feed: &str) {
    eventually(&format!("{feed} recovers"), || {
        watch(address, feed)["error"].is_null()
    });
}

/// Puts a whole new file into a file's place.
fn put(path: &Path, content: impl AsRef<[u8]>, modified: u64) {
    let new = path.with_extension("new");
    write(&new, content, modified);
    fs::rename(new, path).expect("a file");
}

/// Writes into the file itself.
fn write(path: &Path, content: impl AsRef<[u8]>, modified: u64) {
    fs::write(path, content).expect("a file");
    let file = File::options().write(true).open(path).expect("the file");
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(modified);
    file.set_modified(modified).expect("a time");
}

/// Removes whatever is there.
fn clear(path: &Path) {
    if path.is_dir() {
        fs::remove_dir(path).expect("an empty directory");
    } else if path.symlink_metadata().is_ok() {
        fs::remove_file(path).expect("a file");
    }
}

fn lines(path: &Path) -> u64 {
    let text = fs::read_to_string(path).expect("a file");
    text.lines().count() as u64
}

fn stubborn(groups: &Path) -> String {
    STUBBORN.replace("GROUPS", groups.to_str().expect("a path in UTF-8"))
}

/// The first group that a [`STUBBORN`] command has noted.
fn first_group(groups: &Path) -> String {
    let mut first = None;
    eventually("the command runs", || {
        let text = fs::read_to_string(groups).unwrap_or_default();
        first = text.split_once('\n').map(|(first, _)| first.to_owned());
        first.is_some()
    });
    first.unwrap_or_default()
}

/// How many processes of a group run; one that is dead and waits for its parent does not.
fn members(group: &str) -> usize {
    let processes = fs::read_dir("/proc").expect("a list of processes");
    let is_member = |stat: &String| {
        // PID (NAME) STATE PARENT GROUP …
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        let mut fields = fields.split(' ');
        fields.next() != Some("Z") && fields.nth(1) == Some(group)
    };
    processes
        .filter_map(|process| fs::read_to_string(process.ok()?.path().join("stat")).ok())
        .filter(is_member)
        .count()
}

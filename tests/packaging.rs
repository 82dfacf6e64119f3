//! What comes with the program for those who install it: systemd's units, read by systemd where
//! that is installed.

use std::fs;
use std::process::Command;

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
        Err(_) => eprintln!("systemd is not installed: what it makes of the units is not known"),
    }
}

/// `systemd 252 (252.39-1)` is 252.
fn systemd_version() -> Option<u32> {
    let run = Command::new("systemd-analyze").arg("--version").output();
    let said = String::from_utf8(run.ok()?.stdout).ok()?;
    said.split_whitespace().nth(1)?.parse().ok()
}

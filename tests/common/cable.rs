//! A cable that can be cut: a program in a network of its own.

use std::path::Path;
use std::process::{Command, Stdio};

use super::Program;

/// A network of two: the program's namespace at the far end, this process at the near one.
pub struct Cable {
    name: String,
    far: String,
}

impl Cable {
    /// `None` where the system does not allow it or has no `ip`.
    pub fn new() -> Option<Self> {
        let number = std::process::id();
        let name = format!("tc{number}");
        // Addresses for measurements (RFC 2544), four for each process.
        let network = format!("198.18.{}.{}", number >> 6 & 255, (number & 63) * 4);
        let (rest, last) = network.rsplit_once('.')?;
        let last: u32 = last.parse().ok()?;
        let (near, far) = (
            format!("{rest}.{}", last + 1),
            format!("{rest}.{}", last + 2),
        );
        ip(&format!("netns add {name}"))?;
        let cable = Self { name, far };
        let name = &cable.name;
        ip(&format!(
            "link add {name}n type veth peer name {name}f netns {name}"
        ))?;
        ip(&format!("addr add {near}/30 dev {name}n"))?;
        ip(&format!("link set {name}n up"))?;
        ip(&format!("-n {name} addr add {}/30 dev {name}f", cable.far))?;
        ip(&format!("-n {name} link set {name}f up"))?;
        ip(&format!("-n {name} link set lo up"))?;
        Some(cable)
    }

    /// The program at the far end.
    pub fn start(&self, database: &Path, args: &str) -> Program {
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            &self.name,
            env!("CARGO_BIN_EXE_threadcast"),
        ]);
        command.args(["serve", "--insecure", "--publish-rate", "0", "--listen"]);
        command.arg(format!("{}:0", self.far)).arg("--db");
        command.arg(database).args(args.split_whitespace());
        Program::start_command(command)
    }

    /// Nothing comes through any more, in either direction.
    pub fn cut(&self) {
        ip(&format!("link set {}n down", self.name)).expect("a cut");
    }

    pub fn mend(&self) {
        ip(&format!("link set {}n up", self.name)).expect("a cable");
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        let _ = ip(&format!("link del {}n", self.name));
        let _ = ip(&format!("netns del {}", self.name));
    }
}

fn ip(args: &str) -> Option<()> {
    let mut command = Command::new("ip");
    command.args(args.split(' ')).stderr(Stdio::null());
    command.status().ok()?.success().then_some(())
}

//! What this machine gives one process: descriptors and threads.
//!
//! Linux tells in files; where one is missing, there is no such limit.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, getuid, setrlimit};

/// Mappings of one thread: its stack, the stack on which an overflow is reported, and a guard
/// page at each.
const MAPPINGS_PER_THREAD: usize = 4;

/// Mappings that are not of threads: program, libraries, heaps, database.
const OWN_MAPPINGS: usize = 1024;

/// What the process may have.
#[derive(Debug, Default)]
pub(super) struct Machine {
    /// Descriptors in all.
    pub(super) descriptors: usize,
    /// Threads beside those that are there, by what bounds them.
    pub(super) threads: Vec<Bound>,
}

/// One thing that bounds the threads of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bound {
    /// How many there may be.
    pub(super) threads: usize,
    /// The rule, as the log says it: what is so, and what to do about it.
    pub(super) rule: String,
}

impl Machine {
    /// Looks at everything, and raises the descriptor limit as far as it goes.
    pub(super) fn of_this_process() -> Self {
        let mut threads = bounds(Path::new("/"));
        threads.extend(user_bound());
        Self {
            descriptors: raise_descriptor_limit(),
            threads,
        }
    }
}

/// Asks for as many descriptors as the process may have, and returns how many that are.
fn raise_descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = if setrlimit(Resource::Nofile, raised).is_ok() {
        limit.maximum
    } else {
        limit.current
    };
    current
        .and_then(|limit| usize::try_from(limit).ok())
        .unwrap_or(usize::MAX)
}

/// The threads of a user, in all of its programs together; root has no such bound
/// (getrlimit(2), RLIMIT_NPROC). Not raised: it is there to keep the user's programs apart.
fn user_bound() -> Option<Bound> {
    if getuid().is_root() {
        return None;
    }
    let threads = getrlimit(Resource::Nproc).current?;
    Some(Bound {
        threads: usize::try_from(threads).ok()?,
        rule: format!(
            "the user may have {threads} threads; raise it with ulimit -u, or LimitNPROC= of systemd"
        ),
    })
}

/// The bounds that files below `root` tell.
fn bounds(root: &Path) -> Vec<Bound> {
    let mut bounds = Vec::new();
    let running = running_threads(root);
    for name in ["threads-max", "pid_max"] {
        if let Some(most) = number(&root.join("proc/sys/kernel").join(name)) {
            bounds.push(Bound {
                threads: most.saturating_sub(running),
                rule: format!(
                    "the machine may have {most} threads, {running} of which are there; raise it with sysctl kernel.{name}"
                ),
            });
        }
    }
    if let Some(most) = number(&root.join("proc/sys/vm/max_map_count")) {
        bounds.push(Bound {
            threads: most.saturating_sub(OWN_MAPPINGS) / MAPPINGS_PER_THREAD,
            rule: format!(
                "the process may have {most} mappings, and a thread takes {MAPPINGS_PER_THREAD}; raise it with sysctl vm.max_map_count"
            ),
        });
    }
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    for group in groups.lines() {
        bounds.extend(group_bound(root, group));
    }
    bounds
}

/// The threads of the whole machine, the fourth field of its load (proc_loadavg(5)).
fn running_threads(root: &Path) -> usize {
    let load = fs::read_to_string(root.join("proc/loadavg")).unwrap_or_default();
    let field = load.split_whitespace().nth(3).unwrap_or_default();
    let (_, all) = field.split_once('/').unwrap_or_default();
    all.parse().unwrap_or(0)
}

/// The narrowest bound of a control group and those it is in. `line` is one of
/// `/proc/self/cgroup` (cgroups(7)): `0::PATH` in version 2, `N:pids:PATH` in version 1.
///
/// In a container the path may be that of the host, of which only the root is there: the walk
/// up ends at it.
fn group_bound(root: &Path, line: &str) -> Option<Bound> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let base = if controllers.is_empty() {
        root.join("sys/fs/cgroup")
    } else if controllers
        .split(',')
        .any(|controller| controller == "pids")
    {
        root.join("sys/fs/cgroup/pids")
    } else {
        return None;
    };
    let own = base.join(path.trim_start_matches('/'));
    let groups = own.ancestors().take_while(|group| group.starts_with(&base));
    let bounds = groups.filter_map(|group| {
        // `max` is no number, and no limit.
        let most = number(&group.join("pids.max"))?;
        let there = number(&group.join("pids.current")).unwrap_or(0);
        Some(Bound {
            threads: most.saturating_sub(there),
            rule: format!(
                "the control group may have {most} threads, {there} of which are there; raise pids.max, which is TasksMax= of systemd and --pids-limit of containers"
            ),
        })
    });
    bounds.min_by_key(|bound| bound.threads)
}

fn number(file: &Path) -> Option<usize> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of these files, and how many threads each of its bounds allows.
    fn threads(files: &[(&str, &str)]) -> Vec<usize> {
        let root = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            let file = root.path().join(name);
            fs::create_dir_all(file.parent().expect("a directory")).expect("a directory");
            fs::write(file, text).expect("a file");
        }
        let bounds = bounds(root.path());
        bounds.iter().map(|bound| bound.threads).collect()
    }

    #[test]
    fn files_that_are_missing_or_say_max_are_no_limit() {
        assert!(threads(&[]).is_empty());
        let unlimited = [
            ("proc/self/cgroup", "0::/a\nnonsense\n"),
            ("sys/fs/cgroup/a/pids.max", "max\n"),
            ("proc/sys/kernel/threads-max", "many\n"),
        ];
        assert!(threads(&unlimited).is_empty());
    }

    #[test]
    fn threads_that_are_there_are_taken_off_what_the_machine_may_have() {
        let files = [
            ("proc/loadavg", "0.5 0.4 0.3 2/300 4711\n"),
            ("proc/sys/kernel/threads-max", "1000\n"),
            ("proc/sys/kernel/pid_max", "32768\n"),
        ];
        assert_eq!(threads(&files), [700, 32468]);
        assert_eq!(threads(&files[1..]), [1000, 32768]);
    }

    /// Measured: 900 connections more are 3,600 lines more in `/proc/PID/maps`, and a stock
    /// kernel stops at about 16,000.
    #[test]
    fn a_thread_takes_four_mappings() {
        assert_eq!(
            threads(&[("proc/sys/vm/max_map_count", "65530\n")]),
            [16126]
        );
        assert_eq!(threads(&[("proc/sys/vm/max_map_count", "100\n")]), [0]);
    }

    #[test]
    fn the_narrowest_group_on_the_way_up_counts() {
        let version_2 = [
            ("proc/self/cgroup", "0::/user.slice/threadcast.service\n"),
            (
                "sys/fs/cgroup/user.slice/threadcast.service/pids.max",
                "5000\n",
            ),
            (
                "sys/fs/cgroup/user.slice/threadcast.service/pids.current",
                "3\n",
            ),
            ("sys/fs/cgroup/user.slice/pids.max", "4000\n"),
            ("sys/fs/cgroup/user.slice/pids.current", "1000\n"),
        ];
        assert_eq!(threads(&version_2), [3000]);
        assert_eq!(threads(&version_2[..3]), [4997]);
    }

    #[test]
    fn a_container_that_sees_the_host_s_path_finds_its_own_limit_at_the_root() {
        let version_1 = [
            (
                "proc/self/cgroup",
                "9:cpu,cpuacct:/docker/x\n8:pids:/docker/x\n0::/docker/x\n",
            ),
            ("sys/fs/cgroup/pids/pids.max", "100\n"),
            ("sys/fs/cgroup/pids/pids.current", "1\n"),
            ("sys/fs/cgroup/cpu/pids.max", "1\n"),
        ];
        assert_eq!(threads(&version_1), [99]);
    }
}

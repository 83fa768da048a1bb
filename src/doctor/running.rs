//! The osqueryds that run, by their command lines, and which of them is meant. Fleet's agent gives its osqueryd flags and
//! socket there and nowhere else.
//!
//! Only osqueryd's first process counts, its watcher: its worker wipes its own command line.

use std::fs;
use std::path::{Path, PathBuf};

use super::flagfile::{Flagfile, Source};
use crate::cli::{DEFAULT_SOCKET, OSQUERY_FLAGFILE};
use crate::platform::{self, ProcessInfo};

/// An osqueryd that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Osqueryd {
    pub(super) process: ProcessInfo,
    /// Where it listens for extensions.
    pub(super) socket: PathBuf,
    /// The flag files that its command line names.
    pub(super) flagfiles: Vec<PathBuf>,
}

/// The one that is examined.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// What its next start reads.
    pub(super) source: Source,
    /// Its flag file: the one that is asked for, or the first that it names.
    pub(super) flagfile: PathBuf,
    /// Where it is to listen, when the command line of a process or the operator says it.
    pub(super) socket: Option<PathBuf>,
    pub(super) process: Option<u32>,
    /// The others, for a reader.
    pub(super) others: Vec<String>,
}

/// The osqueryds that run now, found among all processes.
pub(super) fn osqueryds() -> Vec<Osqueryd> {
    of_these(platform::processes())
}

fn of_these(mut processes: Vec<ProcessInfo>) -> Vec<Osqueryd> {
    let is_osqueryd = |process: &ProcessInfo| {
        let name = process.arguments.first().and_then(|path| path.rsplit('/').next());
        name == Some("osqueryd")
    };
    processes.retain(is_osqueryd);
    let ids: Vec<u32> = processes.iter().map(|process| process.id).collect();
    processes.retain(|process| !ids.contains(&process.parent));
    processes.sort_by_key(|process| process.id);
    processes.into_iter().map(osqueryd).collect()
}

fn osqueryd(process: ProcessInfo) -> Osqueryd {
    let read = Flagfile::read(&Source::CommandLine(process.clone()), &|_| false);
    let socket = read.values().remove("extensions_socket").unwrap_or_else(|| DEFAULT_SOCKET.to_owned());
    Osqueryd { socket: process.directory.join(socket), flagfiles: read.named, process }
}

/// The osqueryd that the operator means, by its flag file or its socket; else the one with the usual flag file, else the
/// first one, else none, and what would be the usual one's.
pub(super) fn choose(flagfile: Option<&Path>, socket: Option<&Path>, mut running: Vec<Osqueryd>) -> Choice {
    let has_file = |osqueryd: &Osqueryd, path: &Path| osqueryd.flagfiles.iter().any(|named| is_same(named, path));
    let is_meant = |osqueryd: &Osqueryd| {
        flagfile.is_none_or(|path| has_file(osqueryd, path))
            && socket.is_none_or(|path| is_same(&osqueryd.socket, path))
    };
    let usual = |osqueryd: &Osqueryd| has_file(osqueryd, Path::new(OSQUERY_FLAGFILE));
    let found = running
        .iter()
        .position(|osqueryd| is_meant(osqueryd) && usual(osqueryd))
        .or_else(|| running.iter().position(is_meant));
    let meant = found.map(|at| running.remove(at));
    let usual_file = || PathBuf::from(OSQUERY_FLAGFILE);
    let others = running.iter().map(|other| format!("process {} ({})", other.process.id, other.socket.display()));
    let others = others.collect();
    match meant {
        Some(osqueryd) => Choice {
            flagfile: flagfile.map(Path::to_owned).or(osqueryd.flagfiles.into_iter().next()).unwrap_or_else(usual_file),
            socket: Some(osqueryd.socket),
            process: Some(osqueryd.process.id),
            source: Source::CommandLine(osqueryd.process),
            others,
        },
        None => {
            let file = flagfile.map_or_else(usual_file, Path::to_owned);
            Choice {
                source: Source::File(file.clone()),
                flagfile: file,
                socket: socket.map(Path::to_owned),
                process: None,
                others,
            }
        }
    }
}

/// Whether two paths name one file, which may be gone.
fn is_same(one: &Path, other: &Path) -> bool {
    one == other
        || fs::canonicalize(one).ok().is_some_and(|one| fs::canonicalize(other).is_ok_and(|other| one == other))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn seen(id: u32, parent: u32, command: &str) -> ProcessInfo {
        let arguments = command.split(' ').map(str::to_owned).collect();
        ProcessInfo { id, parent, arguments, directory: "/run".into(), age: Duration::ZERO }
    }

    /// As seen on hosts: osquery's own package, its worker, Fleet's agent, and a process that is no osqueryd.
    fn processes() -> Vec<ProcessInfo> {
        vec![
            seen(30, 1, "/usr/bin/osqueryd --flagfile=/no/such/other.flags --extensions_socket=other.em"),
            seen(11, 10, "/opt/osquery/bin/osqueryd  "),
            seen(10, 1, &format!("/opt/osquery/bin/osqueryd --flagfile {OSQUERY_FLAGFILE} --config_path=/x")),
            seen(
                20,
                19,
                "/opt/orbit/bin/osqueryd/linux/stable/osqueryd --pidfile=/opt/orbit/osquery.pid \
                 --extensions_socket=/opt/orbit/orbit-osquery.em --flagfile=/opt/orbit/osquery.flags --force",
            ),
            seen(21, 1, "grep osqueryd"),
            seen(22, 1, "/usr/bin/osqueryi --connect /var/osquery/osquery.em"),
        ]
    }

    #[test]
    fn watchers_are_found_by_their_command_lines_and_nothing_else_is() {
        let found = of_these(processes());
        let sockets: Vec<(u32, &Path)> = found.iter().map(|one| (one.process.id, one.socket.as_path())).collect();
        let orbit = Path::new("/opt/orbit/orbit-osquery.em");
        assert_eq!(sockets, [(10, Path::new(DEFAULT_SOCKET)), (20, orbit), (30, Path::new("/run/other.em"))]);
        assert_eq!(found[1].flagfiles, [Path::new("/opt/orbit/osquery.flags")]);
    }

    #[test]
    fn the_one_that_is_meant_is_chosen_and_the_others_are_told() {
        let choose = |flagfile: Option<&str>, socket: Option<&str>| {
            super::choose(flagfile.map(Path::new), socket.map(Path::new), of_these(processes()))
        };
        let usual = choose(None, None);
        assert_eq!((usual.process, usual.others.len()), (Some(10), 2));
        assert_eq!(choose(None, Some("/opt/orbit/orbit-osquery.em")).flagfile, Path::new("/opt/orbit/osquery.flags"));
        assert_eq!(choose(Some("/opt/orbit/osquery.flags"), None).process, Some(20));
        // No process was started with it: the file alone counts, and what it says of the socket.
        let alone = choose(Some("/tmp/osquery.flags"), None);
        assert_eq!((alone.process, alone.socket, alone.others.len()), (None, None, 3));
        assert_eq!(choose(None, Some("/x.em")).socket.as_deref(), Some(Path::new("/x.em")));
        // Fleet's agent alone, and no osqueryd at all.
        let orbit = super::choose(None, None, of_these(vec![processes().remove(3)]));
        assert_eq!((orbit.process, orbit.others), (Some(20), vec![]));
        let none = super::choose(None, None, Vec::new());
        assert_eq!(none.source, Source::File(OSQUERY_FLAGFILE.into()));
    }
}

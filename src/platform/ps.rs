//! Other processes, as ps(1) tells of them: for systems without `/proc`.

use std::process::Command;
use std::time::Duration;

use super::ProcessInfo;

/// Every system has it there.
const PS: &str = "/bin/ps";

/// All processes that run now. Arguments with blanks in them can't be told from two.
pub(super) fn processes() -> Vec<ProcessInfo> {
    let text = ps(&["-axww", "-o", "pid=,ppid=,etime=,args="]).unwrap_or_default();
    text.lines().filter_map(seen).collect()
}

/// The words of a process' command line, its own name first.
pub(super) fn arguments_of(id: u32) -> Option<Vec<String>> {
    let line = of("args=", id)?;
    Some(line.split_whitespace().map(str::to_owned).collect())
}

/// The first letter of its state: `Z` when it has ended and its parent hasn't looked at it yet, `T` when it is stopped.
pub(super) fn state(id: u32) -> Option<char> {
    of("state=", id)?.chars().next()
}

/// When it was started, to the second, in words that stay the same.
pub(super) fn started(id: u32) -> Option<String> {
    of("lstart=", id)
}

/// The bytes that it has in memory.
pub(super) fn resident_bytes(id: u32) -> Option<u64> {
    of("rss=", id)?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// What ps says of one process; `None` when there is none.
fn of(what: &str, id: u32) -> Option<String> {
    let text = ps(&["-ww", "-o", what, "-p", &id.to_string()])?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn ps(arguments: &[&str]) -> Option<String> {
    let output = Command::new(PS).args(arguments).env("LC_ALL", "C").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn seen(line: &str) -> Option<ProcessInfo> {
    let mut words = line.split_whitespace();
    let (id, parent) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let age = elapsed(words.next()?);
    let arguments = words.map(str::to_owned).collect();
    Some(ProcessInfo { id, parent, arguments, directory: "/".into(), age })
}

/// `[[days-]hours:]minutes:seconds`
fn elapsed(text: &str) -> Duration {
    let (days, clock) = text.split_once('-').unwrap_or(("0", text));
    let days: u64 = days.parse().unwrap_or(0);
    let seconds = clock.split(':').fold(0u64, |sum, part| sum * 60 + part.parse::<u64>().unwrap_or(0));
    Duration::from_secs(days * 86_400 + seconds)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn a_line_of_the_list_is_read() {
        let line =
            "  412     1 03-04:05:06 /opt/osquery/lib/osquery.app/Contents/MacOS/osqueryd --flagfile /var/osquery/f";
        let process = seen(line).unwrap();
        assert_eq!((process.id, process.parent), (412, 1));
        assert_eq!(process.age, Duration::from_secs(((3 * 24 + 4) * 60 + 5) * 60 + 6));
        let program = "/opt/osquery/lib/osquery.app/Contents/MacOS/osqueryd";
        assert_eq!(process.arguments, [program, "--flagfile", "/var/osquery/f"]);
        assert_eq!(elapsed("00:07"), Duration::from_secs(7));
        assert_eq!(elapsed("01:02:03"), Duration::from_secs(3723));
        assert_eq!(seen(""), None);
    }

    /// Linux' ps knows the same words, so what macOS relies on is tried on both.
    #[test]
    fn this_process_and_one_that_has_ended_are_told_of() {
        if !Path::new(PS).exists() {
            return eprintln!("skipped, it needs {PS}: Debian's package is procps");
        }
        let own = std::process::id();
        let found = processes().into_iter().find(|seen| seen.id == own).unwrap();
        assert_eq!(found.parent, std::os::unix::process::parent_id());
        assert_eq!(found.arguments.first(), std::env::args().next().as_ref());
        assert_eq!(arguments_of(own).as_ref(), Some(&found.arguments));
        assert!(resident_bytes(own).unwrap() > 1 << 20);
        assert!(matches!(state(own), Some('R' | 'S')), "{:?}", state(own));
        assert_eq!(started(own), started(own));
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert_ne!(started(child.id()), None);
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while state(child.id()) != Some('Z') && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(state(child.id()), Some('Z'), "its parent has not looked at it yet");
        child.wait().unwrap();
        assert_eq!((state(child.id()), started(child.id())), (None, None));
    }
}
